"""bignas device: the machines that networks are made for."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bignas.cli.options import PATH, examples
from bignas.cli.output import Output, facts, reporting, table
from bignas.device_db.errors import InputError, TargetError

if TYPE_CHECKING:
    from bignas.device_db.device import Device
    from bignas.device_db.target import Target

__all__ = ["device"]

_MEGABYTE = 1 << 20
_ASSUMED_MEGABYTES = 1024


@click.group()
def device() -> None:
    """Show, add and exchange devices.

    A device is a machine, an instruction set and a number of threads. The device local always
    exists: this machine with its best instruction set, one thread.
    """


@device.command("list", epilog=examples("bignas device list", "bignas device list --json"))
@reporting
def list_devices(output: Output) -> None:
    """List all devices."""
    from bignas.device_db.probe import LOCAL
    from bignas.device_db.store import Store

    with Store.open() as store:
        with contextlib.suppress(TargetError):  # a machine that no code can be generated for
            store.device(LOCAL)
        devices = store.devices()
    output.show(
        [one.to_dict() for one in devices],
        table(
            ("device", "target", "threads", "processor"),
            [(one.name, _target_text(one.target), one.threads, one.cpu_model) for one in devices],
        ),
    )


@device.command("show", epilog=examples("bignas device show local"))
@click.argument("name")
@reporting
def show_device(output: Output, name: str) -> None:
    """Show one device and how much was measured on it."""
    from bignas.device_db.store import Store

    with Store.open() as store:
        found = store.device(name)
        counts = {
            "kernel_measurements": len(store.kernel_measurements(name)),
            "network_measurements": len(store.network_measurements(name)),
        }
    output.show({**found.to_dict(), **counts}, facts({**_facts(found), **counts}))


@device.command(
    "add",
    epilog=examples(
        "bignas device add avx2 --target x86-64-v3",
        "bignas device add board --target aarch64-linux-gnu --cpu cortex-a72",
        "bignas device add pi --rpc 127.0.0.1:9190 --key pi4 --target cortex-a72",
    ),
)
@click.argument("name")
@click.option(
    "--target",
    metavar="TARGET",
    help="A preset (x86-64-v3, cortex-a72, ...) or an LLVM triple.  [default: this machine's]",
)
@click.option("--cpu", metavar="CPU", help="LLVM's name of the processor.")
@click.option(
    "--feature",
    "features",
    metavar="[+-]NAME",
    multiple=True,
    help="A feature that the processor has or lacks, as LLVM names it. Repeatable.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads that networks use on it.",
)
@click.option(
    "--cpu-model",
    metavar="TEXT",
    help="What the processor calls itself.  [default: this machine's, if it can run the target]",
)
@click.option("--cores", type=click.IntRange(min=1), help="Processor cores.")
@click.option("--memory-mb", type=click.IntRange(min=1), help="Main memory in megabytes.")
@click.option(
    "--rpc",
    metavar="HOST:PORT",
    help="Another machine: the address of the RPC tracker that its server registered with. It is"
    " asked for processor, cores and memory.",
)
@click.option("--key", metavar="KEY", help="The key that the RPC server registered with.")
@click.option("--replace", is_flag=True, help="Replace a device of that name without measurements.")
@reporting
def add_device(
    output: Output,
    name: str,
    target: str | None,
    cpu: str | None,
    features: tuple[str, ...],
    threads: int,
    cpu_model: str | None,
    cores: int | None,
    memory_mb: int | None,
    rpc: str | None,
    key: str | None,
    replace: bool,
) -> None:
    """Add a device.

    With --rpc it is measured on another machine, by everything that takes --device. TVM's RPC runs
    whatever it is sent, for anybody who reaches it: use it on loopback and trusted networks only.
    """
    if (rpc is None) != (key is None) or (rpc is not None and target is None):
        raise click.UsageError("--rpc, --key and --target belong together.")
    if rpc is not None and (cpu_model, cores, memory_mb) != (None, None, None):
        raise click.UsageError("With --rpc the machine tells its processor, cores and memory.")

    from bignas.device_db.device import Device
    from bignas.device_db.probe import LOCAL, probe_local

    if name == LOCAL:
        raise TargetError(f"{LOCAL!r} always means this machine: choose another name")
    here = probe_local()
    if rpc is not None and key is not None:
        from bignas.latency.remote import describe_remote
        from bignas.latency.rpc_tracker import parse_tracker

        host, port = parse_tracker(rpc)
        described = _target(here.target, target, cpu, features)
        remote = describe_remote(name, host, port, key, described, threads)
        _add(output, remote, replace)
        return
    chosen = _target(here.target, target, cpu, features)
    ours = (
        chosen.architecture is here.target.architecture
        and chosen.vector_lanes <= here.target.vector_lanes
        and cpu_model in (None, here.cpu_model)
    )
    megabytes = here.memory_bytes // _MEGABYTE if ours else _ASSUMED_MEGABYTES
    added = Device(
        name=name,
        target=chosen,
        threads=threads,
        cpu_model=cpu_model or (here.cpu_model if ours else chosen.cpu),
        cores=cores or (here.cores if ours else threads),
        memory_bytes=(memory_mb or megabytes) * _MEGABYTE,
        instruction_sets=here.instruction_sets if ours else (),
    )
    _add(output, added, replace)


def _add(output: Output, added: "Device", replace: bool) -> None:
    from bignas.device_db.store import Store

    with Store.open() as store:
        store.add_device(added, replace=replace)
    output.show(added.to_dict(), facts(_facts(added)))


@device.command(
    "import",
    epilog=examples("bignas device import board.json", "bignas device import a.json --name b"),
)
@click.argument("file", type=PATH)
@click.option("--name", help="Give the device another name.")
@reporting
def import_file(output: Output, file: Path, name: str | None) -> None:
    """Add a device and its measurements from a file of `bignas device export`."""
    from bignas.device_db.exchange import import_device
    from bignas.device_db.store import Store

    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{file} is no device file: it is not UTF-8 text") from None
    with Store.open() as store:
        added = import_device(store, text, name)
    output.show(added.to_dict(), facts(_facts(added)))


@device.command("export", epilog=examples("bignas device export local --out mine.json"))
@click.argument("name")
@click.option("--out", metavar="FILE", type=PATH, help="Write there.  [default: standard output]")
@reporting
def export_file(output: Output, name: str, out: Path | None) -> None:
    """Write a device and its measurements to a file, for another machine to import."""
    import json

    from bignas.device_db.exchange import export_device
    from bignas.device_db.files import write_atomically
    from bignas.device_db.store import Store

    with Store.open() as store:
        text = export_device(store, name)
    if out is None:
        output.show(json.loads(text), text.rstrip())
        return
    write_atomically(out, text.encode())
    document = {"device": name, "path": str(out), "measurements": text.count('"created_at"')}
    output.show(document, facts(document))


def _target(
    here: "Target", name: str | None, cpu: str | None, features: tuple[str, ...]
) -> "Target":
    """Return a preset, or the target of a triple, changed by the other options."""
    from bignas.device_db.presets import PRESETS
    from bignas.device_db.target import Target

    base = here if name is None else PRESETS.get(name)
    if base is not None:
        kept = base.features if cpu is None else ()
        return Target(base.triple, cpu or base.cpu, (*kept, *features))
    if name is None or "-" not in name or cpu is None:
        raise TargetError(
            f"unknown target {name!r}: give one of {', '.join(PRESETS)},"
            " or an LLVM triple with --cpu"
        )
    return Target(name, cpu, features)


def _target_text(target: "Target") -> str:
    return " ".join((target.triple, target.cpu, *target.features))


def _facts(device: "Device") -> dict[str, object]:
    remote = device.remote
    place = (
        {} if remote is None else {"reached": f"key {remote.key} at {remote.host}:{remote.port}"}
    )
    return {
        "device": device.name,
        "target": _target_text(device.target),
        "threads": device.threads,
        "processor": device.cpu_model,
        "cores": device.cores,
        "memory": f"{device.memory_bytes / 2**30:.1f} GiB",
        "instruction sets": " ".join(device.instruction_sets) or "-",
        **place,
    }
