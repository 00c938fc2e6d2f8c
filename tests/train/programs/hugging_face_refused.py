"""What run.hugging_face does not take, as assertions."""

import re
from pathlib import Path

import hugging_face
import transformers
from datasets import Dataset

import lorry
from lorry.errors import InvalidError


def train(folder):
    folder = Path(folder)

    def refused(name, message, made, act=lambda run, made: run.hugging_face(made)):
        try:
            with lorry.run(folder / name) as run:
                act(run, made)
        except InvalidError as error:
            assert re.search(message, str(error)), error
        else:
            raise AssertionError(f"{name} was not refused")

    def trained(run, made):
        run.hugging_face(made)
        made.train()

    def resumed(run, made):
        run.hugging_face(made)
        made.train(resume_from_checkpoint=True)

    def make(**arguments):
        return hugging_face.trainer("causal", folder, 0, **arguments)

    refused("nothing", "takes a transformers.Trainer", object())
    refused("itself", "the name is taken", make(), twice)
    for name in ("auto_find_batch_size", "ignore_data_skip", "enable_jit_checkpoint"):
        refused(name, name, make(**{name: True}))
    refused("persistent", "persistent_workers", make(dataloader_num_workers=2, dataloader_persistent_workers=True))
    refused("resumed", "the run knows by itself", make(), resumed)
    processes = make()
    processes.args._n_gpu = 2
    refused("processes", "CUDA_VISIBLE_DEVICES=0", processes)
    collator = make()
    words = hugging_face.tokenizer()
    collator.data_collator = transformers.DataCollatorForLanguageModeling(words, mlm=True, seed=3)
    refused("collator", "Leave seed out", collator)
    stream = make(max_steps=3)
    stream.train_dataset = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 8}).to_iterable_dataset()
    refused("stream", "not an IterableDataset", stream, trained)
    epochs = make()
    epochs.add_callback(EndsEpochs())
    refused("epochs", "should_epoch_stop", epochs, trained)


def twice(run, made):
    run.hugging_face(made)
    run.hugging_face(made)


class EndsEpochs(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_epoch_stop = state.global_step == 2
