"""A pre-flight's report, on simulated devices."""

import json
import types

import jax
import pytest
from tiny_preflight import API_KEYS, plan

from clip_jax.errors import UserError
from clip_jax.models.flops import step_flops
from clip_jax.preflight import compile as compiling
from clip_jax.preflight.advice import LOSS_COPIES, loss_bytes
from clip_jax.preflight.checks import batch_gathers, whole_optimizer_leaves
from clip_jax.preflight.compile import Compiled, Run, TooLargeError
from clip_jax.preflight.hlo.counting import Collective, Cost, Shape
from clip_jax.preflight.report import Report, format_report
from clip_jax.preflight.run import preflight
from clip_jax.preflight.topology import Target, find_target

MLP_LEAVES = ["blocks/mlp/in/kernel"] * 2 + ["blocks/mlp/out/kernel"] * 2  # two moments


@pytest.fixture(scope="module")
def report() -> Report:
    return preflight(plan())


def test_report_of_a_run_that_fits(report: Report) -> None:
    assert set(report) >= API_KEYS
    assert report == json.loads(json.dumps(report))
    assert (report["fits"], report["reason"], report["devices"]) == (True, None, 8)
    assert report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert report["model_flops_per_step"] == step_flops(plan().architecture, 64)
    # Everything is computed once: what is missing are the gradients of the inputs.
    assert 0.8 < report["compiled_to_model_flops"] <= 1.05
    assert report["loops_of_unknown_length"] == []
    assert set(report["evaluation"]) >= {"image", "text", "fits", "peak_bytes_per_device"}
    assert report["collectives"]["all-gather"] > 0
    assert report["collectives"]["all-reduce"] > 0
    assert sum(report["collective_bytes_by_kind"].values()) == report["collective_bytes_per_device"]
    assert report["batch_gathers"] == []
    text = format_report(report)
    assert text.startswith("fits: 0.0")
    assert "mesh data 2 × fsdp 4 × tensor 1" in text
    assert "all-gathers of activations over the batch: none" in text


def test_bytes_by_kind(report: Report) -> None:
    here = {name.removesuffix("_bytes_per_device"): report[name] for name in report}
    assert here["peak"] == here["argument"] + here["output"] + here["temp"]
    parameters = report["parameter_bytes"]
    assert parameters == 4 * report["parameters"]
    # Two moments, and the counts of steps.
    assert 0 <= report["optimizer_bytes"] - 2 * parameters <= 16
    assert here["batch"] == 64 // 8 * (32 * 32 * 3 + 4 * 12)
    # Most of it is in leaves that are split four ways.
    assert parameters / 4 <= here["parameter"] < 0.4 * parameters
    state = here["parameter"] + here["optimizer"]
    assert here["argument"] == pytest.approx(state + here["batch"], rel=1e-3)
    even = (parameters + report["optimizer_bytes"]) / 4
    assert report["state_to_even_share"] == pytest.approx(state / even)


@pytest.mark.slow
def test_remat_is_seen_in_the_operations(report: Report) -> None:
    full = preflight(plan(model__remat="full"), evaluation=False)
    assert full["compiled_to_model_flops"] > 1.1 * report["compiled_to_model_flops"]
    assert full["evaluation"] is None


def test_batch_gathers_are_found() -> None:
    run = plan()

    def gather(rows: int, width: int, axis: int = 0) -> Collective:
        part = (rows // 4, width) if axis == 0 else (rows, width // 4)
        shapes = (Shape("f32", part),), (Shape("f32", (rows, width)),)
        return Collective("all-gather", *shapes, (axis,), 4, "towers")

    found = gather(32, 4 * 256)  # activations of four devices
    innocent = [gather(32, 16), gather(1024, 256), gather(256, 1024, axis=1)]
    assert batch_gathers(run, Cost(0.0, (*innocent, found))) == (found,)


def test_whole_optimizer_state_is_found() -> None:
    assert whole_optimizer_leaves(plan()) == {}
    assert whole_optimizer_leaves(plan(mesh__data=8, mesh__fsdp=1)) == {}  # nothing is split
    # An axis of three divides nothing here.
    three = Target("three", find_target("cpu:8").devices[:3], None)
    found = whole_optimizer_leaves(
        plan(three, mesh__data=1, mesh__fsdp=3, batch_size=66, model__vision__width=64)
    )
    assert sorted(path.split("/transformer/")[-1] for path in found) == MLP_LEAVES
    assert all(size >= 2**18 for size in found.values())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"mesh__data": 3}, ("mesh data=3 fsdp=4", "8 devices")),
        ({"batch_size": 60}, ("config.batch_size=60", "multiple of")),
        ({"optimizer__microbatches": 5}, ("config.optimizer.microbatches=5", "must divide")),
    ],
)
def test_mistakes_that_training_refuses_too(changes: dict, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        plan(**changes)
    for part in parts:
        assert part in str(caught.value)


def test_vocabulary_without_data() -> None:
    assert plan().architecture.vocab_size == 400
    assert plan(tokenizer__source="clip_bpe").architecture.vocab_size == 49408
    assert plan(loss="sigmoid").architecture.logit_bias_init == -10.0
    elsewhere = plan(tokenizer__source="tokenizers/elsewhere", model__vocab_size=700)
    assert elsewhere.architecture.vocab_size == 700
    assert "'tokenizers/elsewhere' is not here; 700 ids" in elsewhere.notes[0]


def test_departures_from_the_configuration_are_noted(report: Report) -> None:
    assert "steps" in plan(steps=None, epochs=3.0).notes[0]
    changes = {"mesh__data": 1, "mesh__fsdp": 1, "loss_implementation": "ring"}
    [note] = plan(find_target("cpu:1"), **changes).notes
    assert "'chunked' is used" in note
    assert f"\nnote: {note}\n" in format_report(report | {"notes": [note]})


def test_only_a_dense_softmax_loss_keeps_its_logits() -> None:
    losses = [("softmax", "dense"), ("sigmoid", "dense"), ("softmax", "chunked")]
    kept = [loss_bytes(plan(loss=loss, loss_implementation=how)) for loss, how in losses]
    assert kept == [LOSS_COPIES * 4 * 8 * 64, 0, 0]


def needing(mib: int) -> Compiled:
    """A compiled program of so many MiB."""
    kinds = ("argument", "output", "alias", "host_temp", "generated_code", "temp")
    sizes = {f"{kind}_size_in_bytes": (kind == "temp") * mib << 20 for kind in kinds}
    memory = types.SimpleNamespace(**sizes)
    return Compiled(memory, Cost(), None, 1.0, "cpu")


def test_a_run_that_does_not_fit_is_told_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan(batch_size=4096, hbm=40 << 20)
    monkeypatch.setattr(compiling, "compile_train_step", lambda _: needing(70))
    report = preflight(run)
    assert report["fits"] is False
    assert report["reason"] == "the train step needs 0.068 of 0.039 GiB a device"
    assert report["evaluation"] is None
    advice = "\n".join(report["advice"])
    assert "--config.model.remat=full" in advice
    assert "--config.optimizer.microbatches=" in advice
    assert format_report(report).startswith("does not fit: ")


def test_an_evaluation_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan(hbm=40 << 20)
    monkeypatch.setattr(compiling, "compile_train_step", lambda _: needing(30))
    monkeypatch.setattr(compiling, "compile_evaluation", lambda _: {"image": needing(39)})
    report = preflight(run)
    assert report["fits"] is False
    assert report["peak_bytes_per_device"] == 30 << 20
    # The optimizer's state is there all the time.
    idle = report["optimizer_bytes_per_device"]
    assert report["evaluation"]["peak_bytes_per_device"] == (39 << 20) + idle
    assert "config.evaluations: batch_size=256 needs" in report["reason"]
    assert report["advice"] == ["evaluation: batch_size=128 in config.evaluations"]
    run = plan(evaluations=({"batch_size": 8},), hbm=40 << 20)
    assert "an image a device is too much" in preflight(run)["advice"][0]


@pytest.mark.parametrize("step", ["train", "evaluation"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: no lowering\nsecond line"), "INTERNAL: no lowering"),
        (TooLargeError("Used 21.84G of 15.75G hbm."), "needs 21.84 of 0.039 GiB a device"),
    ],
)
def test_a_compiler_that_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, reason: str
) -> None:
    def fail(_: Run) -> Compiled:
        raise error

    monkeypatch.setattr(compiling, "compile_train_step", lambda _: needing(30))
    function = {"train": "compile_train_step", "evaluation": "compile_evaluation"}[step]
    monkeypatch.setattr(compiling, function, fail)
    report = preflight(plan(hbm=40 << 20))
    assert report["fits"] is False
    assert f"the {step} step" in report["reason"]
    assert report["reason"].endswith(reason)
    assert (report["evaluation"] is None) is (step == "train")


def test_the_compilers_refusal_is_read() -> None:
    before = TooLargeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (18.50G) exceeds available HBM (15.75G)."
    )
    assert before.needed_bytes == int(18.5 * 2**30)
    after = TooLargeError(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.84G of 15.75G hbm. "
        "Exceeded hbm capacity by 6.09G.\n\n  Largest program allocations in hbm:\n\n"
        '  1. Size: 512.0M\n     Operator: op_name="jit(train_step)/mlp"\n'
        "     Shape: bf16[256,197,3072]{2,1,0}\n"
    )
    assert after.needed_bytes == int(21.84 * 2**30)
    assert after.allocations == [(512 << 20, "bf16[256,197,3072]{2,1,0}", "jit(train_step)/mlp")]


@pytest.mark.slow
def test_a_run_that_trains_an_adapter() -> None:
    """The state of what is trained is small, and the base is split as parameters are."""
    found = preflight(plan(adapter__method="lora", init__source="not opened"))
    assert found["fits"]
    assert found["parameter_bytes"] == 4 * found["parameters"]
    assert 0 <= found["optimizer_bytes"] - 2 * found["parameter_bytes"] <= 32
    assert found["base_bytes"] > 20 * found["parameter_bytes"]
    assert found["base_bytes_per_device"] < 0.4 * found["base_bytes"]
    # Backward is that of activations alone.
    assert 0.8 < found["compiled_to_model_flops"] <= 1.1
    assert "base of adapter" in format_report(found)
