"""Plan the use of a cluster: its current machines, and what each stage may use of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ffd_runtime.core.errors import DeviceError
from ffd_runtime.core.text import counted

# CPU cores that each actor or task requests. Without GPUs, an actor and a preparing task share each
# core, because either may be the slower one. Together they request half a core, so that all actors
# still fit if half of the machines fail. Ray Data fuses stages with equal requests, so the numbers
# differ.
INFERENCE_CPUS = 0.3
PREPARATION_CPUS = 0.2
WRITING_CPUS = 0.1


@dataclass(frozen=True)
class Plan:
    """What each stage of a run may use, on all machines that are alive.

    Attributes:
        actors: number of processes that hold the model.
        device: `cpu` or `cuda`, for each actor.
    """

    nodes: int
    cpus: int
    gpus: int
    actors: int
    device: str

    @classmethod
    def of(cls, nodes: list[dict[str, Any]], device: str, actors: int | None = None) -> Plan:
        """Plan for the machines that are alive.

        Args:
            nodes: the result of `ray.nodes()`.
            device: `auto`, `cpu` or `cuda`.
            actors: None for one per GPU, or one per core without GPUs. A cluster that grows may
                have fewer GPUs than actors now.

        Raises:
            DeviceError: no machine has the device.
        """
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        cpus = int(sum(resources.get("CPU", 0) for resources in alive))
        gpus = int(sum(resources.get("GPU", 0) for resources in alive))
        if device == "cuda" and not (gpus or actors):
            raise DeviceError(
                "--device cuda: no machine of the cluster offers Ray a GPU; if the cluster adds "
                "machines on request, set the number of GPUs with --actors"
            )
        if device == "cuda" or (gpus and device == "auto"):
            return cls(len(alive), cpus, gpus, actors or gpus, "cuda")
        if not cpus:
            raise DeviceError("no machine of the cluster offers Ray a CPU")
        return cls(len(alive), cpus, gpus, actors or cpus, "cpu")

    @property
    def inference(self) -> dict[str, Any]:
        """Ray's options for an actor."""
        if self.device == "cuda":
            return {"num_gpus": 1, "num_cpus": INFERENCE_CPUS}
        # Any number of actors leaves cores for the other stages.
        share = min(INFERENCE_CPUS, round(self.cpus / self.actors / 2, 3))
        return {"num_cpus": share if share != PREPARATION_CPUS else share - 0.01}

    @property
    def cores(self) -> int:
        """Inference threads of an actor on a CPU."""
        return max(1, self.cpus // self.actors) if self.device == "cpu" else 1

    @property
    def preparation_cpus(self) -> float:
        """CPU cores that a task requests which prepares images."""
        # For a GPU, a task requests a core minus the actor's share, so that one core is enough.
        return PREPARATION_CPUS if self.device == "cpu" else 1 - INFERENCE_CPUS

    def __str__(self) -> str:
        kinds = [counted(self.nodes, "machine"), counted(self.cpus, "CPU core")]
        kinds += [counted(self.gpus, "GPU")] if self.gpus else []
        return f"{', '.join(kinds)}; {counted(self.actors, 'actor')}"
