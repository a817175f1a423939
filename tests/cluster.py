"""A Ray cluster of two machines and an S3 server, both on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from .servers import free_port

KEY = "AKIAFFDTESTKEY123456"
SECRET = "ffd/test+secret/never/shown/anywhere/0123"


class S3Server:
    """moto's S3 server in its own process; it checks keys only within `checking_keys`."""

    def __init__(self) -> None:
        pytest.importorskip("moto")
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._clients: dict[str, Any] = {}
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        environment = os.environ | self.environment
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

    def client(self, service: str = "s3") -> Any:
        import boto3

        # boto3 reads the description of the service for each client, which takes longer than a
        # request.
        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,
                endpoint_url=self.endpoint,
                region_name="us-east-1",
                aws_access_key_id=KEY,
                aws_secret_access_key=SECRET,
            )
        return self._clients[service]

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
        """Return the names below a prefix, without an empty object that represents the folder."""
        pages = self.client().get_paginator("list_objects_v2").paginate
        found = (page.get("Contents", ()) for page in pages(Bucket=bucket, Prefix=prefix))
        keys = [one["Key"].removeprefix(prefix) for page in found for one in page]
        return list(filter(None, keys))

    def fetch(self, bucket: str, prefix: str, folder: Path) -> None:
        folder.mkdir()
        for name in self.names(bucket, prefix):
            self.client().download_file(bucket, prefix + name, str(folder / name))

    @contextmanager
    def checking_keys(self) -> Iterator[None]:
        """Check access keys and their permissions; `KEY` is unknown."""
        self._check_keys_after("0")
        try:
            yield
        finally:
            self._check_keys_after("inf")

    def create_key(self, *statements: dict[str, Any]) -> dict[str, str]:
        """Create a user with a policy, and return the environment with the user's key."""
        users = self.client("iam")
        name = f"user-{uuid.uuid4().hex}"
        users.create_user(UserName=name)
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        users.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=policy)
        key = users.create_access_key(UserName=name)["AccessKey"]
        return self.environment | {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def _check_keys_after(self, requests: str) -> None:
        url = f"{self.endpoint}/moto-api/reset-auth"
        kind = {"Content-Type": "text/plain"}
        with urlopen(Request(url, requests.encode(), kind)) as answer:
            assert answer.status == 200

    def _answers(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class TwoMachines:
    """A head and another machine of a Ray cluster, each with one core, as child processes.

    They inherit the current environment.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # A killed machine counts as lost after a second instead of ten.
        checks = {"health_check_period_ms": 250, "health_check_failure_threshold": 4}
        head = {
            "num_cpus": 1,
            "include_dashboard": False,
            "no_monitor": True,
            "_system_config": checks,
        }
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._other = self._cluster.add_node(num_cpus=1)
        self.address: str = self._cluster.address

    def kill_one(self) -> None:
        """Kill the machine that is not the head, without a shutdown."""
        self._cluster.remove_node(self._other, allow_graceful=False)

    @property
    def session(self) -> Path:
        """The folder of the machines' logs."""
        return Path(self._cluster.head_node.get_session_dir_path())

    def close(self) -> None:
        self._cluster.shutdown()
