"""Looks at, checks and converts image-text data of any format.

python -m clip_jax.data inspect --data='shards/*.tar' --output=page.html
python -m clip_jax.data verify --data=photos.csv
python -m clip_jax.data convert --data=photos --output=shards --to=webdataset --resize=256
python -m clip_jax.data tokenizer --data='shards/*.tar' --vocab_size=16000 --output=tokenizer
python -m clip_jax.data index --data='shards/*.tar'
python -m clip_jax.data hashes --data='test/*.tar' --output=test_set.txt
"""

import sys

from clip_jax.dataset_tools.program import run

if __name__ == "__main__":
    run(sys.argv, __doc__ or "")
