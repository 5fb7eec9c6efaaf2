"""The TON virtual machine: the wasm of `@ton/sandbox` in a Node process, one request at a time.

Real gas, real fees, real action and bounce phases, for whatever configuration it is given. Blocking; safe to call
from several threads. Not here: which messages there are, and what becomes of them (`ledger`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from pytoniq_core import Cell, HashMap, begin_cell

from ...errors import CocoonError, Unavailable
from ...types import Network
from .nodejs import NodeJs, Progress, find_node, install_packages

PRICES: Final = ("2026-06", "2025-12")  # mainnet's gas, storage and message prices as of these months; newest first


class MessageRefused(CocoonError):
    """The TVM would not run a message: an external one that its account did not accept, or no valid message."""

    def __init__(self, why: str, *, exit_code: int | None) -> None:
        super().__init__(f"the message was refused: {why[:200]}")
        self.tvm_exit_code = exit_code


def data_folder() -> Path:
    """Where the script, the lock file and the configuration are, as files."""
    folder = resources.files("cocoon") / "data" / "devnet"
    assert isinstance(folder, Path)  # wheels are installed unpacked
    return folder


def prepare(cache: Path, *, progress: Progress = lambda _: None) -> tuple[NodeJs, Path]:
    """Node and the packages that the TVM needs, fetched if they must be. Raises `ConfigError`, `Unavailable`."""
    node = find_node()
    return node, install_packages(data_folder(), cache, node=node, progress=progress)


def configuration(*, network: Network, prices: str = PRICES[0], extra: Mapping[int, Cell] | None = None) -> Cell:
    """A blockchain configuration: parameter 19 says which network it is, `prices` what gas and storage cost."""
    kept = json.loads((data_folder() / "config.json").read_text())
    cells = {int(key): cell_from_base64(value) for key, value in {**kept["base"], **kept["prices"][prices]}.items()}
    cells[19] = begin_cell().store_int(int(network), 32).end_cell()
    cells.update(extra or {})
    dictionary = HashMap(32, value_serializer=lambda source, builder: builder.store_ref(source))
    for key, value in sorted(cells.items()):
        dictionary.set_int_key(key & 0xFFFFFFFF, value)
    return dictionary.serialize()


def cell_to_base64(cell: Cell) -> str:
    """A bag of cells in base64."""
    return base64.b64encode(cell.to_boc()).decode()


def cell_from_base64(text: str) -> Cell:
    """The one root of a bag of cells. Only for what our own process or package wrote."""
    return Cell.one_from_boc(base64.b64decode(text))


class Tvm:
    """A running TVM process. Close it, or use it as a context manager."""

    def __init__(self, node: NodeJs, modules: Path, *, config: Cell) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(  # noqa: S603 the script is ours
            [str(node.node), str(data_folder() / "tvm.cjs"), str(modules.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.set_config(config)

    def __enter__(self) -> Tvm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_config(self, config: Cell) -> None:
        """Use another configuration from now on."""
        self._call(op="config", boc=cell_to_base64(config))

    def run_transaction(
        self, *, account: Cell, message: Cell, now_s: int, lt: int, seed: bytes = bytes(32)
    ) -> tuple[Cell, Cell]:
        """The transaction and the new `ShardAccount`. Raises `MessageRefused`."""
        answer = self._call(
            op="transaction",
            account=cell_to_base64(account),
            message=cell_to_base64(message),
            now=now_s,
            lt=str(lt),
            seed=seed.hex(),
        )
        if "refused" in answer:
            raise MessageRefused(answer["refused"], exit_code=answer.get("exit_code"))
        return cell_from_base64(answer["transaction"]), cell_from_base64(answer["account"])

    def run_method(
        self, *, code: Cell, data: Cell, method: int, stack: Cell | None, address: str, now_s: int, balance_nano: int
    ) -> tuple[int, Cell]:
        """A get method's exit code and result stack. Raises `MessageRefused`."""
        answer = self._call(
            op="method",
            code=cell_to_base64(code),
            data=cell_to_base64(data),
            method=method,
            stack=None if stack is None else cell_to_base64(stack),
            address=address,
            now=now_s,
            balance=str(balance_nano),
        )
        if "refused" in answer:
            raise MessageRefused(answer["refused"], exit_code=None)
        return int(answer["exit_code"]), cell_from_base64(answer["stack"])

    def close(self) -> None:
        """End the process, which holds nothing that could be lost. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _call(self, **request: Any) -> dict[str, Any]:
        with self._lock:
            try:
                assert self._process.stdin is not None and self._process.stdout is not None
                self._process.stdin.write(json.dumps(request) + "\n")
                line = self._process.stdout.readline()
            except (OSError, ValueError) as error:
                raise Unavailable("the TVM process has ended", advice="Start the devnet again.") from error
        if not line:
            raise Unavailable("the TVM process has ended", advice="Start the devnet again.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MessageRefused(answer["error"], exit_code=None)
        return answer
