"""Choice of a linear probe's penalty on a validation split.

The protocol is that of Radford et al. 2021, appendix A.3: λ runs from 1e-6 to 1e6 at eight values a
decade, is chosen on validation images, and the final fit is on training and validation images. λ
weighs ½‖W‖² against the *sum* of cross-entropies: l2 = λ / N, and scikit-learn's `C` = 1 / λ (2 / λ
with two classes).
"""
