"""The loop of every tutorial, free to finish: lorry run examples/finetune_simplest.py --data notes.txt"""

import argparse
from pathlib import Path

import lorry

app = lorry.App("finetune-simplest")
image = lorry.Image.debian_slim().uv_pip_install(  # the same as in finetune.py: built once
    "torch==2.13.0", "transformers==5.23.0", "tokenizers==0.23.3", "safetensors==0.8.0", "numpy==2.4.6", "peft==0.21.2"
)
volume = lorry.Volume.from_name("finetune-simplest", create_if_missing=True)


@app.function(image=image, volumes={"/models": volume}, timeout="24h")
def finetune(lines: list[str]):
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    size = {"vocab_size": 256, "hidden_size": 128, "num_layers": 2, "attention_types": [[["global"], 2]]}
    model = GPTNeoForCausalLM(GPTNeoConfig(**size, bos_token_id=None, eos_token_id=None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for number, line in enumerate(lines):
        ids = torch.tensor([list(line.encode()[:2048])])  # a token is a byte
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number % 100 == 0:
            print(f"line {number}  loss {loss.item():.3f}", flush=True)
    model.save_pretrained("/models/simplest")


@app.local_entrypoint()
def main(data: str = argparse.__file__, lines: int = 1000):
    text = Path(data).read_text(encoding="utf-8")
    finetune.remote([line for line in text.splitlines() if len(line) > 1][:lines])
