"""Train a small language model on your own text, keep it on a Volume, let it write.

    lorry run examples/finetune.py                                        # Python's standard library
    lorry run examples/finetune.py --data shakespeare.txt --prompt "To be"
    lorry run examples/finetune.py --data notes.txt --model EleutherAI/gpt-neo-125M --lora
    lorry run examples/finetune.py::generate --prompt "To be"             # again, from the saved weights

Without --model, a GPT-Neo of 0.7 million parameters starts from random weights and takes about a minute on
two CPU cores. --model continues from real weights of the Hugging Face hub: put gpu="L4" on `finetune` for
that, or lower --steps, which is the one dial. --lora trains small matrices beside the weights and leaves these
as they are, so that each checkpoint but the first writes a few megabytes. A model may be a path: the one that an
earlier run printed.

Kill it at any moment, `kill -9` included: it goes on from its last checkpoint, to the same weights. After Ctrl-C,
`lorry runs resume` goes on. See docs/training.md.
"""

import json
import math
import secrets
import sysconfig
import tempfile
import time
from pathlib import Path

import lorry

# 1. What the code needs: packages, and two Volumes that outlive the containers.

app = lorry.App("finetune")
image = (
    lorry.Image.debian_slim()
    .uv_pip_install(
        "torch==2.13.0",
        "transformers==5.23.0",
        "tokenizers==0.23.3",
        "safetensors==0.8.0",
        "numpy==2.4.6",
        "peft==0.21.2",
    )
    .env(
        {
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads lose most of a core that others also use
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": "/models/hub",  # on the Volume: a model is downloaded once
        }
    )
)
data_volume = lorry.Volume.from_name("finetune-data", create_if_missing=True)
model_volume = lorry.Volume.from_name("finetune-models", create_if_missing=True)
DATA, MODELS = "/data", "/models"

with image.imports():  # on your machine none of these is needed
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        PreTrainedTokenizerFast,
    )

# 2. Where training starts: from nothing, or from somebody's weights.


def train_tokenizer(text: str) -> "PreTrainedTokenizerFast":
    """Byte-level BPE: any text in, the same text out, frequent words are one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [text],
        trainers.BpeTrainer(vocab_size=2048, special_tokens=[end], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, pad_token=end)


def new_model(vocabulary: int) -> "GPTNeoForCausalLM":
    config = GPTNeoConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_layers=2,
        num_heads=8,
        attention_types=[[["global", "local"], 1]],
        window_size=64,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoForCausalLM(config)


# 3. Train.


@app.function(image=image, volumes={DATA: data_volume, MODELS: model_volume}, timeout="1h", resumable=True)
def finetune(data: str, model: str | None = None, steps: int = 2000, lora: bool = False) -> dict:
    started = time.monotonic()
    run = lorry.run()
    torch.manual_seed(1337)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = Path(data).read_text(encoding="utf-8", errors="replace")

    if model:
        print(f"loading {model}", flush=True)
        tokenizer = AutoTokenizer.from_pretrained(model)
        net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        peak_lr, batch, context = 5e-5, 4, min(256, net.config.max_position_embeddings)
    else:
        tokenizer = train_tokenizer(text)
        net = new_model(len(tokenizer))
        peak_lr, batch, context = 3e-3, 4, 128
    if lora:
        net = get_peft_model(net, LoraConfig(r=16, target_modules="all-linear"))
        peak_lr *= 2
    net.to(device).train()

    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    if len(ids) <= context:
        raise ValueError(f"{data} has {len(ids)} tokens; one training sequence alone takes {context + 1}")
    trained = [p for p in net.parameters() if p.requires_grad]
    millions = sum(p.numel() for p in trained) / 1e6
    print(f"{millions:.1f} M parameters, {len(ids):,} tokens of text, {steps} steps on {device}", flush=True)

    optimizer = torch.optim.AdamW(trained, lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # a short climb, then half a cosine down to a tenth
        optimizer,
        lambda n: min((n + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * min(1.0, n / steps))),
    )
    losses: list[float] = []
    run.track(model=net, optimizer=optimizer, schedule=schedule, losses=losses)
    run.total_steps = steps
    run.restore()  # at the first attempt there is nothing
    done = run.step_number
    first_step = time.monotonic()
    for step in range(done + 1, steps + 1):
        starts = torch.randint(len(ids) - context, (batch,)).tolist()
        x = torch.stack([ids[s : s + context] for s in starts]).to(device)
        loss = net(input_ids=x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step == done + 1 or step % max(1, steps // 20) == 0:
            per_step = (time.monotonic() - first_step) / (step - done)
            speed, left = batch * context / per_step, per_step * (steps - step)
            print(
                f"step {step:>5}/{steps}  loss {losses[-1]:.3f}  {speed:,.0f} tokens/s  {left:.0f} s left",
                flush=True,
            )
        run.step(loss=losses[-1])  # the one place where it may save, or stop to go on in the next slice

    # 4. Keep it. A folder appears under its name when it is whole; LATEST names the newest one.

    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    unfinished, path, pointer = Path(MODELS, f".{name}"), Path(MODELS, name), Path(MODELS, f".latest-{name}")
    if lora:
        net = net.merge_and_unload()  # for whoever loads it, a model as any other
    net.save_pretrained(unfinished)  # safetensors
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(path)
    pointer.write_text(name)
    pointer.replace(Path(MODELS, "LATEST"))
    model_volume.commit()

    first, last = losses[:50], losses[-50:]
    return {
        "steps": steps,
        "first50": round(sum(first) / len(first), 4),
        "last50": round(sum(last) / len(last), 4),
        "tokens": steps * batch * context,
        "seconds": round(time.monotonic() - started, 1),
        "path": str(path),
    }


# 5. Write.


@app.function(image=image, volumes={MODELS: model_volume})
def generate(prompt: str = "\n", tokens: int = 200) -> str:
    latest = Path(MODELS, "LATEST")
    if not latest.exists():
        raise FileNotFoundError("no model yet: run `lorry run examples/finetune.py` first")
    path = Path(MODELS, latest.read_text())
    tokenizer = AutoTokenizer.from_pretrained(path)
    net = AutoModelForCausalLM.from_pretrained(path).eval()
    context = net.config.max_position_embeddings
    ids = tokenizer(prompt or "\n", return_tensors="pt")["input_ids"]
    end = ids.shape[1] + tokens
    while ids.shape[1] < end:  # past its context, the model goes on from the last half of it
        window = ids[:, -(context // 2) :]
        more = min(end - ids.shape[1], context - window.shape[1])
        out = net.generate(
            window,
            attention_mask=torch.ones_like(window),
            max_new_tokens=more,
            min_new_tokens=more,
            do_sample=True,
            temperature=0.7,
            top_k=40,
            pad_token_id=tokenizer.eos_token_id,
        )
        ids = torch.cat([ids, out[:, window.shape[1] :]], dim=1)
    return tokenizer.decode(ids[0])


# 6. From your terminal: upload the text, train, read what came out.


def standard_library(limit: int = 1_500_000) -> str:
    """Text that every machine has: the modules of Python itself."""
    text = ""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = file.read_text(encoding="utf-8", errors="replace")
        if len(text) + len(source) <= limit:
            text += source
    return text


@app.local_entrypoint()
def main(data: str = "", model: str = "", steps: int = 2000, prompt: str = "", lora: bool = False):
    if lora and not model:
        raise SystemExit("--lora needs a --model: beside random weights there is nothing to learn from")
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(data or Path(scratch, "stdlib.txt"))
        if not data:
            local.write_text(standard_library(), encoding="utf-8")
        with data_volume.batch_upload(force=True) as batch:
            batch.put_file(local, f"/{local.name}")
    result = finetune.remote(f"{DATA}/{local.name}", model or None, steps, lora)
    print(json.dumps(result))
    print(f"loss {result['first50']} -> {result['last50']} in {result['seconds']} s; it now writes:\n")
    print(generate.remote(prompt or ("\n" if data else "def")))
