"""A Ray cluster of two machines, and an S3 server, both real and both on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from .servers import free_port

KEY = "AKIAFFDTESTKEY123456"
SECRET = "ffd/test+secret/never/shown/anywhere/0123"


class S3Server:
    """moto's S3 in a process of its own.

    Args:
        open_requests: that are let through before keys are looked at; None never to look.
    """

    def __init__(self, open_requests: int | None = None) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        environment = os.environ | self.environment
        if open_requests is not None:
            environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(open_requests)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.1)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def create(self, bucket: str, objects: Iterable[tuple[str, bytes]] = ()) -> None:
        client = self.client()
        client.create_bucket(Bucket=bucket)
        with ThreadPoolExecutor(4) as pool:
            puts = [
                pool.submit(client.put_object, Bucket=bucket, Key=key, Body=body)
                for key, body in objects
            ]
            for put in puts:
                put.result()

    def names(self, bucket: str, prefix: str) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate
        found = (page.get("Contents", ()) for page in pages(Bucket=bucket, Prefix=prefix))
        return [one["Key"].removeprefix(prefix) for page in found for one in page]

    def fetch(self, bucket: str, prefix: str, folder: Path) -> None:
        folder.mkdir()
        for name in self.names(bucket, prefix):
            self.client().download_file(bucket, prefix + name, str(folder / name))

    def _answers(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class TwoMachines:
    """A head and another machine of a Ray cluster, each with a core, as processes of this one.

    Their processes have the environment that this one has now.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._other = self._cluster.add_node(num_cpus=1)
        self.address: str = self._cluster.address

    def kill_one(self) -> None:
        """Take the machine that is not the head away, without a word."""
        self._cluster.remove_node(self._other, allow_graceful=False)

    @property
    def session(self) -> Path:
        """Where the machines write their logs."""
        return Path(self._cluster.head_node.get_session_dir_path())

    def close(self) -> None:
        self._cluster.shutdown()
