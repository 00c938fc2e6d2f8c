"""`run.hugging_face(trainer)`: transformers' Trainer and TRL's SFTTrainer, killed at any moment, with the same bits.

Four things make it so.

*   The safe point is where the next step begins (and the end of training): what follows a step, such as logs,
    evaluation, early stopping and Trainer's own checkpoints, belongs to it and is not done half. The program goes on
    at the very place in the code where its state was taken.
*   By then Trainer has fetched the batches to come, and its data loader one more. So a batch must not depend on when
    it is made, nor by which process: while it is read and collated, the shared generators are a function of (seed,
    epoch, number of the batch), and so they are while the order of an epoch is drawn.
*   The position, and `TrainerState`, go the way of Trainer's own `resume_from_checkpoint`: it gets a folder with a
    `trainer_state.json`, skips batches by their numbers without reading them, and finds nothing else there.
*   Everything else is loaded when training begins, for then Trainer has made the optimizer and the schedule.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorry.errors import InvalidError
from lorry.storage.atomic import make_folder
from lorry.train import rng
from lorry.train.metrics import RESERVED
from lorry.train.numbered import repeatable

if TYPE_CHECKING:
    from lorry.train.run import Run

BETWEEN_LOGS = ("_globalstep_last_logged", "current_flos", "_metrics", "_total_train_tokens")
"""Attributes of the trainers that gather what the next log line says."""
LOADERS = ("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state")
"""Methods of Trainer that look for more than `trainer_state.json`."""
REFUSED = {
    "auto_find_batch_size": "makes the place in the data depend on the memory that was free",
    "ignore_data_skip": "goes on at the beginning of the epoch",
    "dataloader_persistent_workers": "keeps random numbers in the workers",
    "enable_jit_checkpoint": "ends training at a signal as if it were done",
}
BEYOND_THE_END = 1 << 60
"""Steps. Trainer takes a training of so many for done; by its true number it might train the last epoch's rest."""


def attach(run: Run, trainer: Any) -> None:
    """InvalidError: this training cannot be repeated bit by bit (yet), with what to do."""
    callback: Any = importlib.import_module("transformers").TrainerCallback
    _refuse(trainer)
    kept = Kept(run, trainer)
    run.track(trainer=kept)
    trainer.add_callback(type("LorryCallback", (Hooks, callback), {})(kept))
    trainer.get_train_dataloader = functools.partial(repeatable, trainer, _seed(trainer), trainer.get_train_dataloader)
    trainer.train = functools.partial(kept.train, trainer.train)


class Kept:
    """What a run tracks of a trainer. It is restored before Trainer has made the half of it, and waits until then."""

    def __init__(self, run: Run, trainer: Any) -> None:
        self.run: Any = run
        self._trainer = trainer
        self._plan: dict[str, Any] | None = None
        """What the position relies on; None until training begins."""
        self._loaded: dict[str, Any] | None = None
        self._generators: rng.State | None = None
        self._finished = False
        self._metrics: dict[str, Any] | None = None
        """Of the step that is done and not yet safe."""
        self._loss_before: Any = None
        self._step_began: Callable[[], None] = lambda: None

    def state_dict(self) -> dict[str, Any]:
        trainer = self._trainer
        state = {"model": _weights(trainer.model), "frozen": _frozen(trainer.model)}
        if self._plan is None:  # asked only whether it can be kept
            return state
        scaler = trainer.accelerator.scaler
        return {
            **state,
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "plan": self._plan,
            "finished": self._asked_for() if self._finished else None,
            "state": json.dumps(dataclasses.asdict(trainer.state)),
            "callbacks": {name: callback.state()["attributes"] for name, callback in self._callbacks()},
            "between logs": {name: getattr(trainer, name) for name in BETWEEN_LOGS if hasattr(trainer, name)},
            "loss": trainer._tr_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = state

    def register_step_post_hook(self, hook: Callable[[], None]) -> None:
        """As an optimizer's: it tells a run that the state is not that of a safe point any more."""
        self._step_began = hook

    def train(self, train: Callable[..., Any], resume_from_checkpoint: Any = None, *rest: Any, **options: Any) -> Any:
        """In place of `trainer.train`."""
        if resume_from_checkpoint:
            raise InvalidError(
                f"trainer.train(resume_from_checkpoint={resume_from_checkpoint!r}): the run knows by itself where to "
                "go on. Leave it out; to start from other weights, load them into the model before"
            )
        before = rng.capture()
        self.run.restore()
        self._generators = rng.capture()
        rng.restore(before)  # until the first step everything is as it is at the first attempt
        if self._loaded is None:
            return train(None, *rest, **options)
        self._trainer.args.eval_on_start = False  # it did
        self._trainer.args.restore_callback_states_from_checkpoint = False  # `begin` does, with newer ones
        for name in LOADERS:
            setattr(self._trainer, name, _nothing)
        state = json.loads(self._loaded["state"])
        if self._loaded["finished"] == self._asked_for():
            state["global_step"] = BEYOND_THE_END
        folder = make_folder(self.run.folder / "trainer")
        (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
        return train(str(folder), *rest, **options)

    def begin(self, loader: Any) -> None:
        """Everything is made, nothing has been trained."""
        trainer, loaded, self._loaded = self._trainer, self._loaded, None
        self._plan = plan = {
            "samples": len(loader.dataset),
            "batches": len(loader),
            "accumulated": trainer.args.gradient_accumulation_steps,
            "seed": _seed(trainer),
        }
        self.run.total_steps = trainer.state.max_steps
        if loaded is None:
            return
        if loaded["plan"] != plan:
            raise InvalidError(
                f"The data or its batches changed: the checkpoint was made with {_said(loaded['plan'])}, and now there "
                f"are {_said(plan)}. Put it back, or start anew in another folder (this is {self.run.folder})"
            )
        _load_weights(trainer.model, loaded)
        trainer.optimizer.load_state_dict(loaded["optimizer"])
        trainer.lr_scheduler.load_state_dict(loaded["scheduler"])
        if loaded["scaler"] is not None and trainer.accelerator.scaler is not None:
            trainer.accelerator.scaler.load_state_dict(loaded["scaler"])
        for name, callback in self._callbacks():
            vars(callback).update(loaded["callbacks"].get(name, {}))
        vars(trainer).update(loaded["between logs"])
        trainer._tr_loss += loaded["loss"].to(trainer._tr_loss.device)
        trainer._total_loss_scalar -= trainer._tr_loss.item()  # Trainer's summary is that of one attempt
        trainer.state.global_step = trainer._initial_global_step = json.loads(loaded["state"])["global_step"]

    def begin_step(self) -> None:
        self._safe_point()
        if self._generators is not None:
            rng.restore(self._generators)  # last: the start of the data loader, or `eval_on_start`, drew numbers
            self._generators = None
        self._loss_before = self._trainer._tr_loss.clone()
        self._step_began()

    def end_step(self) -> None:
        self._metrics = {"loss": self._trainer._tr_loss - self._loss_before}

    def evaluated(self, metrics: dict[str, Any]) -> None:
        if self._metrics is not None:
            numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
            self._metrics.update({name: value for name, value in numbers.items() if name not in RESERVED})

    def finish(self) -> None:
        self._finished = True
        self._safe_point()
        self.run.finish()

    def _safe_point(self) -> None:
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            self.run.step(**metrics)

    def _callbacks(self) -> list[tuple[str, Any]]:
        """Those with a state of their own, such as EarlyStoppingCallback."""
        kind = importlib.import_module("transformers.trainer_callback").ExportableState
        found = enumerate(self._trainer.callback_handler.callbacks)
        return [(f"{i} {type(callback).__name__}", callback) for i, callback in found if isinstance(callback, kind)]

    def _asked_for(self) -> list[Any]:
        return [self._trainer.args.num_train_epochs, self._trainer.args.max_steps]


class Hooks:
    """Becomes a TrainerCallback."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def on_train_begin(self, *_: Any, train_dataloader: Any, **__: Any) -> None:
        self._kept.begin(train_dataloader)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._kept.begin_step()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._kept.end_step()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **_: Any) -> None:
        self._kept.evaluated(metrics)

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self._kept.run.heartbeat()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_epoch_stop and not control.should_training_stop:
            raise InvalidError(
                "A callback ended an epoch early (should_epoch_stop). Trainer finds its place in the data by counting "
                "whole epochs, so a run could not go on from here: give the epoch fewer samples instead"
            )

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._kept.finish()


# --- the model ------------------------------------------------------------------------------------------------


def _weights(model: Any) -> dict[str, Any]:
    """The state of a model; of one with adapters (PEFT) only what is trained, which is a thousandth of it."""
    if getattr(model, "peft_config", None) is None:
        state: dict[str, Any] = model.state_dict()
        return state
    changing = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    changing |= {id(buffer) for buffer in model.buffers()}
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) in changing}


def _frozen(model: Any) -> str | None:
    """What shows that another attempt puts its adapters on the same weights: the beginning of each of them."""
    if getattr(model, "peft_config", None) is None:
        return None
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            start = parameter.detach().flatten()[:16].cpu().tolist()
            found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {start}\n".encode())
    return found.hexdigest()


def _load_weights(model: Any, loaded: dict[str, Any]) -> None:
    if loaded["frozen"] is None:
        model.load_state_dict(loaded["model"])
        return
    if loaded["frozen"] != _frozen(model) or loaded["model"].keys() != _weights(model).keys():
        raise InvalidError(
            "The checkpoint holds adapters of another model: the frozen weights, or the layers that have adapters, are "
            "not what they were. Load the same base model as at the first attempt (one with random weights: after "
            "transformers.set_seed)"
        )
    model.load_state_dict(loaded["model"], strict=False)


# --- what is refused ------------------------------------------------------------------------------------------


def _refuse(trainer: Any) -> None:
    if not isinstance(trainer, importlib.import_module("transformers").Trainer):
        raise InvalidError(
            f"run.hugging_face takes a transformers.Trainer or one that is derived from it, such as trl.SFTTrainer, "
            f"and got a {type(trainer).__module__}.{type(trainer).__qualname__}"
        )
    args: Any = trainer.args
    if args.world_size > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise InvalidError("run.hugging_face trains in one process as yet, without torchrun, DeepSpeed and FSDP")
    if args.n_gpu > 1:
        raise InvalidError(
            f"Trainer would use {args.n_gpu} GPUs through DataParallel, and run.hugging_face takes one as yet: set "
            "CUDA_VISIBLE_DEVICES=0 before torch is imported, or ask for one GPU"
        )
    for name, why in REFUSED.items():
        if getattr(args, name, False):
            raise InvalidError(f"{name}=True {why}, so the end would depend on how often training was killed: leave it")
    if getattr(trainer.data_collator, "seed", None) is not None:
        raise InvalidError(
            f"{type(trainer.data_collator).__name__}(seed=…) draws from a generator of its own, whose state is lost "
            "with its process. Leave seed out: the run makes what a collator draws depend on TrainingArguments' seed"
        )


def _seed(trainer: Any) -> int:
    seed: int = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
    return seed


def _said(plan: dict[str, Any]) -> str:
    return (
        f"{plan['samples']:,} samples in {plan['batches']:,} batches, {plan['accumulated']} of them per step, "
        f"seed {plan['seed']}"
    )


def _nothing(*_: Any, **__: Any) -> None:
    pass
