"""Ray after `ray.init`: a new actor imports torch for its first call. Ray may have started the process ahead."""

from __future__ import annotations

import ray
import turns


@ray.remote(num_cpus=0)
class Adder:
    def add(self) -> float:
        import torch

        return float(torch.ones(8).sum())


def start() -> dict[str, float]:
    began = turns.now()
    adder = Adder.remote()
    assert ray.get(adder.add.remote()) == 8.0
    took = (turns.now() - began) * 1e3
    ray.kill(adder)
    return {"value": took}


def main() -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=256 << 20,
        _node_ip_address="127.0.0.1",
    )
    start()
    turns.serve({"start": start})
    ray.shutdown()


if __name__ == "__main__":
    main()
