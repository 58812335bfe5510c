"""Training learns, follows the recipe, and resumes to the bit after a kill at any moment."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bignas.device_db.errors import CheckpointError, DataError, OutputError, TrainingError
from bignas.device_db.workload import Activation
from bignas.supernet.checkpoint import Checkpoint, load_checkpoint
from bignas.supernet.data import ImageData, load_data, preprocess
from bignas.supernet.evaluate import evaluate_architectures
from bignas.supernet.monitor import DivergenceDetector
from bignas.supernet.network import Supernet
from bignas.supernet.recipe import Precision, draw_architectures, draw_batch, learning_rate
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space
from bignas.supernet.stage import StageSpace
from bignas.supernet.train import Regularize, Schedule, TrainConfig, TrainProgress, _Run, train

SHORT = TrainConfig(epochs=3, batch_size=24, threads=1, log_every_steps=1, save_every_steps=5)


def same(first: Checkpoint, second: Checkpoint) -> bool:
    return all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_it_learns(tiny_space: SearchSpace, toy_data: ImageData, out: Path) -> None:
    config = dataclasses.replace(SHORT, epochs=12)
    seen: list[TrainProgress] = []
    trained = train(tiny_space, toy_data, out, config, seen.append)
    assert [progress.step for progress in seen] == list(range(1, 49))
    assert seen[-1].eta_seconds == 0
    assert (trained.step, trained.epochs_done) == (48, 12)
    network, loaded = load_checkpoint(out)
    assert same(trained, loaded)
    assert loaded.space == tiny_space.with_classes(3)
    archs = [network.space.smallest(), network.space.biggest()]
    results = evaluate_architectures(network, archs, toy_data, "test")
    assert [result.arch for result in results] == archs
    assert all(result.top1 > 0.8 for result in results)
    assert results[1].macs > results[0].macs
    lines = [json.loads(line) for line in metrics_of(out).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 49))
    assert lines[0]["learning_rate"] == learning_rate(config, 0, 4)
    assert len(lines[0]["losses"]) == 4


def metrics_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.metrics.jsonl")


def state_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.state")


@pytest.mark.parametrize(
    "change",
    [{}, {"dropout": 0.3}, {"average_decay": 0.9}, {"label_weight": 0.5}, {"whiten_stem": True}],
)
def test_an_interrupted_run_ends_in_the_same_weights(
    tiny_space: SearchSpace, toy_data: ImageData, tmp_path: Path, change: dict[str, float]
) -> None:
    config = dataclasses.replace(SHORT, **change)  # type: ignore[arg-type]
    whole = train(tiny_space, toy_data, tmp_path / "whole", config)

    def stop_twice(progress: TrainProgress) -> None:
        if progress.step in (2, 7):
            raise KeyboardInterrupt

    parts = tmp_path / "parts"
    for step in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            train(tiny_space, toy_data, parts, config, stop_twice)
        assert load_checkpoint(parts)[1].step == step
    assert same(train(tiny_space, toy_data, parts, config), whole)
    assert [json.loads(line)["step"] for line in metrics_of(parts).read_text().splitlines()] == [
        *range(1, 13)
    ]
    assert parts.read_bytes() == (tmp_path / "whole").read_bytes()


STILL = dataclasses.replace(SHORT, epochs=1, learning_rate=1e-9, weight_decay=0.0)


def test_training_goes_on_from_given_weights(
    tiny_space: SearchSpace, toy_data: ImageData, tmp_path: Path
) -> None:
    first = train(tiny_space, toy_data, tmp_path / "first", SHORT)
    second = train(tiny_space, toy_data, tmp_path / "second", STILL, start=first)
    for name, weight in first.weights.items():
        assert torch.allclose(second.weights[name], weight, atol=1e-6)
    assert (first.all_epochs, second.epochs_done, second.all_epochs) == (3, 1, 4)
    third = train(tiny_space, toy_data, tmp_path / "third", STILL, start=second)
    assert third.all_epochs == 5
    loaded = load_checkpoint(tmp_path / "third")[1]
    assert loaded.start == third.start
    assert third.start is not None
    assert third.start.digest == second.digest

    again = train(tiny_space, toy_data, tmp_path / "second", STILL, start=first)
    assert same(again, second)
    for start in (None, second):
        with pytest.raises(CheckpointError, match="started from other weights"):
            train(tiny_space, toy_data, tmp_path / "second", STILL, start=start)


def test_other_classes_get_a_new_classifier(
    tiny_space: SearchSpace, toy_data: ImageData, tmp_path: Path
) -> None:
    first = train(tiny_space, toy_data, tmp_path / "first", SHORT)
    others = dataclasses.replace(toy_data, classes=("d", "e", "f"))
    second = train(tiny_space, others, tmp_path / "second", STILL, start=first)
    for name, weight in first.weights.items():
        is_kept = torch.allclose(second.weights[name], weight, atol=1e-6)
        assert is_kept != name.startswith("classifier.")


def test_weights_of_another_space_are_no_start(
    tiny_space: SearchSpace, gated_space: SearchSpace, toy_data: ImageData, tmp_path: Path
) -> None:
    first = train(tiny_space, toy_data, tmp_path / "first", SHORT)
    with pytest.raises(CheckpointError, match="another search space"):
        train(gated_space, toy_data, tmp_path / "second", SHORT, start=first)
    assert not (tmp_path / "second").exists()


def test_a_finished_run_is_not_repeated(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path
) -> None:
    whole = train(tiny_space, toy_data, out, SHORT)
    steps: list[TrainProgress] = []
    assert same(train(tiny_space, toy_data, out, SHORT, steps.append), whole)
    state_of(out).unlink()
    assert same(train(tiny_space, toy_data, out, SHORT, steps.append), whole)
    assert steps == []


def test_a_crash_between_the_two_files_is_repaired(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path
) -> None:
    whole = train(tiny_space, toy_data, out, SHORT)
    out.unlink()
    assert same(train(tiny_space, toy_data, out, SHORT), whole)
    assert same(load_checkpoint(out)[1], whole)


SCRIPT = """
import sys
from pathlib import Path
from bignas.supernet.data import load_data
from bignas.supernet.spaces import load_space
from bignas.supernet.train import TrainConfig, train
config = TrainConfig(epochs=2, batch_size=32, threads=1, max_train_images=320, save_every_steps=2)
train(load_space(sys.argv[1]), load_data("digits"), Path(sys.argv[2]), config,
      lambda progress: print(progress.step, flush=True))
"""

SPACE_FILE = """
resolutions = [12, 16]
stem_channels = [8]
stem_stride = 2
stem_activation = "relu"
head_channels = [16]
head_activation = "relu"
[[stages]]
channels = [8, 16]
depths = [1, 2]
kernels = [3]
expands = [1, 2]
stride = 1
activation = "relu"
squeeze_excite = false
"""


def test_kill_and_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    space_file, parts = tmp_path / "space.toml", tmp_path / "parts"
    space_file.write_text(SPACE_FILE)
    command = [sys.executable, "-c", SCRIPT, str(space_file), str(parts)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 5:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert 4 <= load_checkpoint(parts)[1].step < 20
    config = TrainConfig(
        epochs=2, batch_size=32, threads=1, max_train_images=320, save_every_steps=2
    )
    space, data = load_space(str(space_file)), load_data("digits")
    resumed = train(space, data, parts, config)
    whole = train(space, data, tmp_path / "whole", config)
    assert same(resumed, whole)
    assert parts.read_bytes() == (tmp_path / "whole").read_bytes()


def test_ctrl_c_finishes_the_step_and_saves(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path
) -> None:
    def press(progress: TrainProgress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_space, toy_data, out, SHORT, press)
    assert load_checkpoint(out)[1].step == 3
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.2}, "learning_rate = 0.1, not 0.2"),
        ({"seed": 1}, "seed"),
        ({"schedule": Schedule.COSINE}, "schedule"),
    ],
)
def test_another_configuration_is_refused(
    tiny_space: SearchSpace,
    toy_data: ImageData,
    out: Path,
    change: dict[str, object],
    words: str,
) -> None:
    config = dataclasses.replace(SHORT, epochs=1)
    train(tiny_space, toy_data, out, config)
    content = out.read_bytes()
    with pytest.raises(CheckpointError, match=words):
        train(tiny_space, toy_data, out, dataclasses.replace(config, **change))  # type: ignore[arg-type]
    assert out.read_bytes() == content
    train(tiny_space, toy_data, out, dataclasses.replace(config, save_every_steps=7))


def test_another_space_or_data_or_file_is_refused(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path
) -> None:
    config = dataclasses.replace(SHORT, epochs=1)
    train(tiny_space, toy_data, out, config)
    other = dataclasses.replace(tiny_space, head_channels=(16,))
    with pytest.raises(CheckpointError, match="another search space"):
        train(other, toy_data, out, config)
    with pytest.raises(CheckpointError, match="other data"):
        train(tiny_space, dataclasses.replace(toy_data, digest="x"), out, config)
    foreign = out.with_name("foreign")
    foreign.write_text("a letter")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        train(tiny_space, toy_data, foreign, config)
    assert foreign.read_text() == "a letter"
    state_of(out).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        train(tiny_space, toy_data, out, config)


def test_an_unfinished_checkpoint_without_its_state_is_refused(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path
) -> None:
    def stop(progress: TrainProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_space, toy_data, out, SHORT, stop)
    state_of(out).unlink()
    with pytest.raises(CheckpointError, match="cannot resume"):
        train(tiny_space, toy_data, out, SHORT)


def test_divergence_is_an_error_and_keeps_what_was_saved(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SHORT, save_every_steps=1)

    def poison(progress: TrainProgress) -> None:
        if progress.step == 3:
            monkeypatch.setattr(
                "bignas.supernet.train.preprocess",
                lambda images, side, mean, std: torch.full(
                    (len(images), 3, side, side), float("nan")
                ),
            )

    with pytest.raises(TrainingError, match="not finite at step 4"):
        train(tiny_space, toy_data, out, config, poison)
    assert load_checkpoint(out)[1].step == 3


def test_a_loss_that_stays_above_guessing_is_divergence() -> None:
    detector = DivergenceDetector(classes=10)
    for step in range(100):  # a short rise is none
        detector.check(step, [9.0 if step < 20 else 2.0, 2.0], 1.0, 0.1)
    for step in range(100, 149):
        detector.check(step, [6.0, 2.0], 1.0, 0.1)
    with pytest.raises(TrainingError, match="diverged at step 149"):
        detector.check(149, [6.0, 2.0], 1.0, 0.1)
    with pytest.raises(TrainingError, match="not finite at step 7"):
        detector.check(7, [2.0, 2.0], math.inf, 0.1)


def test_the_average_lags_behind_the_weights(
    tiny_space: SearchSpace, toy_data: ImageData, tmp_path: Path
) -> None:
    """The delivered average equals the recursion over the weights of each step."""
    config = dataclasses.replace(SHORT, epochs=2, average_decay=0.5, label_epochs=2)
    run = _Run(tiny_space.with_classes(3), toy_data, tmp_path / "net", config)
    name, weights = next(iter(run._network.named_parameters()))
    expected = weights.detach().clone()
    while run.step < run.total_steps:
        run.advance()
        decay = min(0.5, run.step / (run.step + 10))
        expected = decay * expected + (1 - decay) * weights.detach()
    delivered = run.checkpoint().weights[name]
    assert torch.allclose(delivered, expected, atol=1e-6)
    assert not torch.allclose(delivered, weights)


def test_metrics_for_tensorboard_and_progress(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path
) -> None:
    """Three children are evaluated every epoch; the events repeat the lines, once each."""
    seen: list[TrainProgress] = []

    def stop(progress: TrainProgress) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_space, toy_data, out, SHORT, stop)
    train(tiny_space, toy_data, out, SHORT, seen.append)
    lines = [json.loads(line) for line in metrics_of(out).read_text().splitlines()]
    evaluated = [line for line in lines if "top1" in line]
    assert [line["step"] for line in evaluated] == [4, 8, 12]
    assert evaluated[-1]["top1"].keys() == {"smallest", "middle", "biggest"}
    assert seen[-1].top1 == evaluated[-1]["top1"]
    events = EventAccumulator(str(out.with_name(f"{out.name}.tensorboard"))).Reload()
    for tag, values in {
        "top1/biggest": [(line["step"], line["top1"]["biggest"]) for line in evaluated],
        "losses/1": [(line["step"], line["losses"][1]) for line in lines],
    }.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in values]
        assert [value for _, value in found] == pytest.approx([value for _, value in values])


def test_too_few_images_and_no_place(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path
) -> None:
    with pytest.raises(DataError, match="96 training images, fewer than a batch of 97"):
        train(tiny_space, toy_data, out, TrainConfig(batch_size=97))
    with pytest.raises(DataError, match="8 training images"):
        train(tiny_space, toy_data, out, TrainConfig(max_train_images=8))
    out.parent.mkdir()
    (out.parent / "file").write_text("")
    with pytest.raises(OutputError):
        train(tiny_space, toy_data, out.parent / "file" / "net", SHORT)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(distillation=False),
        TrainConfig(zero_gamma=False),
        TrainConfig(regularize=Regularize.ALL, dropout=0.2),
        TrainConfig(schedule=Schedule.COSINE),
        TrainConfig(sandwich=False, distillation=False, regularize=Regularize.ALL),
        TrainConfig(random_children=0),
        TrainConfig(label_epochs=0),
        TrainConfig(label_epochs=0, label_weight=0.5),
        TrainConfig(average_decay=0.9),
        TrainConfig(whiten_stem=True),
    ],
)
def test_every_part_can_be_switched(
    tiny_space: SearchSpace, toy_data: ImageData, tmp_path: Path, config: TrainConfig
) -> None:
    short = {"epochs": 2, "batch_size": 48, "threads": 1}
    usual = train(tiny_space, toy_data, tmp_path / "usual", TrainConfig(**short))  # type: ignore[arg-type]
    changed = dataclasses.replace(config, **short)  # type: ignore[arg-type]
    assert not same(train(tiny_space, toy_data, tmp_path / "changed", changed), usual)


def test_only_the_biggest_sees_labels_once_they_distil(
    tiny_space: SearchSpace, toy_data: ImageData, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With distillation the labels enter one loss of the four, with smoothing; before it, all."""
    calls: list[float] = []
    original = torch.nn.functional.cross_entropy

    def record(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        calls.append(label_smoothing)
        return original(logits, labels, label_smoothing=label_smoothing)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", record)
    space = tiny_space.with_classes(3)
    run = _Run(space, toy_data, out, dataclasses.replace(SHORT, label_epochs=1))
    while run.step < 96 // SHORT.batch_size:
        run.advance()
        assert calls == [0.1, 0.0, 0.0, 0.0]
        calls.clear()
    run.advance()
    assert calls == [0.1]
    calls.clear()
    _Run(space, toy_data, out, dataclasses.replace(SHORT, distillation=False)).advance()
    assert calls == [0.1, 0.0, 0.0, 0.0]


def test_decay_acts_once_a_step(tiny_space: SearchSpace, toy_data: ImageData, out: Path) -> None:
    """Where the gradient is zero, a step shrinks the weights by rate x decay x (1 + momentum)."""
    config = dataclasses.replace(SHORT, weight_decay=0.5)
    run = _Run(tiny_space.with_classes(3), toy_data, out, config)
    weights = [p for p in run._network.parameters() if p.ndim > 1]
    before = [weight.detach().clone() for weight in weights]
    rate = learning_rate(config, 0, 4)
    run._optimizer.step(rate / config.learning_rate)
    for old, new in zip(before, weights, strict=True):
        assert torch.allclose(new, old * (1 - rate * 0.5 * (1 + config.momentum)), atol=1e-6)


def test_threads_are_restored(tiny_space: SearchSpace, toy_data: ImageData, out: Path) -> None:
    inside: list[int] = []
    config = dataclasses.replace(SHORT, epochs=1, threads=2, max_train_images=24)
    train(tiny_space, toy_data, out, config, lambda _: inside.append(torch.get_num_threads()))
    assert set(inside) == {2}
    assert torch.get_num_threads() == 1


def test_digits_are_learnt_in_seconds(out: Path) -> None:
    """A smoke test of the whole room on real images, with a small budget."""
    relu = Activation.RELU
    stages = (
        StageSpace((16,), (1,), (3,), (1,), 2, relu, False),
        StageSpace((24, 32), (1, 2), (3,), (2, 4), 2, relu, False),
    )
    space = SearchSpace("small", (12, 16), (16,), 1, relu, stages, (64,), relu)
    data = load_data("digits")
    config = TrainConfig(
        epochs=8, batch_size=32, learning_rate=0.3, threads=1, warmup_epochs=0.5, hold_epochs=1.0
    )
    train(space, data, out, config)
    network, _ = load_checkpoint(out)
    result = evaluate_architectures(network, [network.space.biggest()], data, "test")[0]
    assert result.top1 > 0.9


def test_gradients_add_up(tiny_space: SearchSpace, toy_data: ImageData, out: Path) -> None:
    """The gradient of a step is the sum of those of its children, each as if it were alone."""
    config = TrainConfig(
        batch_size=24,
        random_children=0,
        sandwich=False,
        distillation=False,
        regularize=Regularize.ALL,
        precision=Precision.FLOAT32,
    )
    run = _Run(tiny_space.with_classes(3), toy_data, out, config)
    losses = run._backward()
    images, labels = draw_batch(config, toy_data.train, 0, toy_data.mirrorable)
    network = Supernet(tiny_space.with_classes(3), seed=config.seed)
    total = torch.zeros(())
    for arch in draw_architectures(config, network.space, 0):
        inputs = preprocess(images, arch.resolution, toy_data.mean, toy_data.std)
        logits = network(inputs, arch)
        total = total + torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels), label_smoothing=config.label_smoothing
        )
    total.backward()  # type: ignore[no-untyped-call]
    assert sum(losses) == pytest.approx(total.item(), rel=1e-5)
    for mine, parameter in zip(run._network.parameters(), network.parameters(), strict=True):
        assert mine.grad is not None
        expected = torch.zeros_like(mine) if parameter.grad is None else parameter.grad
        assert torch.allclose(mine.grad, expected, atol=1e-5)
