"""How a run uses a cluster: machines as they are now, and what each stage may have of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ffd_runtime.core.errors import DeviceError
from ffd_runtime.core.text import counted

# On machines without GPUs, each core has an actor and a task that prepares, and shares its time
# between them as they need it: which of the two is slower depends on model and pictures. Together
# they ask for half a core, so that what remains when half of the machines die can take all actors.
# Stages that ask for the same would be run as one by Ray Data.
INFERENCE = 0.3
PREPARATION = 0.2
WRITING = 0.1


@dataclass(frozen=True)
class Plan:
    """What each stage of a run may use.

    Attributes:
        nodes: machines that are alive.
        cpus: of all of them.
        gpus: of all of them.
        actors: that hold the model.
        device: `cpu` or `cuda`, of each actor.
    """

    nodes: int
    cpus: int
    gpus: int
    actors: int
    device: str

    @classmethod
    def of(cls, nodes: list[dict[str, Any]], device: str, actors: int | None = None) -> Plan:
        """A plan for the machines that are alive.

        Args:
            nodes: what `ray.nodes()` says.
            device: `auto`, `cpu` or `cuda`.
            actors: None for one on each GPU, else one a core. There may be more than machines now,
                for a cluster that grows.

        Raises:
            DeviceError: a GPU is asked for and there is none.
        """
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        cpus = int(sum(resources.get("CPU", 0) for resources in alive))
        gpus = int(sum(resources.get("GPU", 0) for resources in alive))
        if device == "cuda" and not (gpus or actors):
            raise DeviceError(
                "--device cuda: no machine of the cluster offers Ray a GPU; if machines come when "
                "they are needed, say for how many with --actors"
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
            return {"num_gpus": 1, "num_cpus": INFERENCE}
        # However many there are, something is left for the others.
        share = min(INFERENCE, round(self.cpus / self.actors / 2, 3))
        return {"num_cpus": share if share != PREPARATION else share - 0.01}

    @property
    def cores(self) -> int:
        """Threads of inference of an actor on a CPU."""
        return max(1, self.cpus // self.actors) if self.device == "cpu" else 1

    @property
    def preparation(self) -> dict[str, Any]:
        """Ray's options for a task that prepares, and how many there may be."""
        # A GPU is hungry: all cores, of a single one what its actor leaves.
        share = PREPARATION if self.device == "cpu" else 1 - INFERENCE
        return {"num_cpus": share, "concurrency": max(1, self.cpus)}

    def __str__(self) -> str:
        kinds = [counted(self.nodes, "machine"), counted(self.cpus, "CPU core")]
        kinds += [counted(self.gpus, "GPU")] if self.gpus else []
        return f"{', '.join(kinds)}; {counted(self.actors, 'actor')}"
