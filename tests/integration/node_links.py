#!/usr/bin/env python3
"""Nodes in network name spaces of their own, each joined to a hub by one link that can be cut.

  hub: `paceline run`, its coordinator (on loopback), a bridge 10.77.0.1
    |-- link node-0 -- node-0's name space, 10.77.0.2: its agent (--address) and workers
    |-- link node-1 -- ...

Everything between two nodes, and between a node and the coordinator, goes over their links: Gloo,
snapshots, gRPC. A coordinator listens on loopback alone, so a relay listens on each node's loopback
at the coordinator's port and passes what comes on to the hub, over the link: an agent's connection
to the coordinator ends at the relay, which knows as little of a cut as the agent does.

usage (by this module): node_links.py RUNS-FOLDER HUB-PID NODE-PID...
"""
import asyncio
import contextlib
import ctypes
import json
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys
import time

CLONE_NEWNET = 0x40000000
HUB_IP = "10.77.0.1"
LIMIT_S = 30  # for any command
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # whoever kills the test leaves nothing behind


def network_of(pid):
    return os.readlink(f"/proc/{pid}/ns/net")


def enter(pid):
    """Moves the calling thread into the network name space that the process is in."""
    with open(f"/proc/{pid}/ns/net", "rb") as name_space:
        if ctypes.CDLL(None, use_errno=True).setns(name_space.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def can_be_made():
    """False: this user may not. A machine that lacks the programs is no reason to test nothing."""
    for program in ("ip", "nsenter", "setpriv", "unshare"):
        if shutil.which(program) is None:
            raise FileNotFoundError(f"{program}: install iproute2 and util-linux")
    made = subprocess.run(["unshare", "-n", "ip", "link", "add", "hub", "type", "bridge"],
                          stderr=subprocess.DEVNULL, timeout=LIMIT_S, check=False)
    return made.returncode == 0


class NodeLinks:
    """The name spaces of `nodes` nodes, called node-0, node-1, ... as `paceline run` calls them.

    case: the test, at whose end they go. bin_folder: the programs; self.bin has them with an agent
    that goes to its node. runs: the folder of runs, in which the relays look for the coordinator.
    """

    def __init__(self, case, nodes, bin_folder, runs):
        self.names = [f"node-{node}" for node in range(nodes)]
        self.hub, *self.nodes = (self._make_name_space(case) for _ in range(nodes + 1))
        self._configure()
        self.bin = case.folder / "bin"
        self._write_programs(pathlib.Path(bin_folder))
        relay = subprocess.Popen([*WITH_PARENT, sys.executable, __file__, str(runs), str(self.hub),
                                  *map(str, self.nodes)])
        case.addCleanup(self._end, relay)

    @staticmethod
    def _end(process):
        process.kill()
        process.wait(LIMIT_S)

    def _make_name_space(self, case):
        holder = subprocess.Popen([*WITH_PARENT, "unshare", "-n", "sleep", "infinity"])
        case.addCleanup(self._end, holder)
        deadline = time.monotonic() + LIMIT_S
        while network_of(holder.pid) == network_of("self"):
            case.assertLess(time.monotonic(), deadline, "unshare -n")
            time.sleep(0.01)
        return holder.pid

    def _ip(self, pid, *arguments):
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *arguments], check=True,
                       timeout=LIMIT_S)

    def _configure(self):
        self._ip(self.hub, "link", "set", "lo", "up")
        self._ip(self.hub, "link", "add", "hub", "type", "bridge")
        self._ip(self.hub, "addr", "add", f"{HUB_IP}/24", "dev", "hub")
        self._ip(self.hub, "link", "set", "hub", "up")
        for name, pid, ip in zip(self.names, self.nodes, self.ips()):
            self._ip(self.hub, "link", "add", name, "type", "veth", "peer", "name", "uplink",
                     "netns", str(pid))
            self._ip(self.hub, "link", "set", name, "master", "hub", "up")
            self._ip(pid, "addr", "add", f"{ip}/24", "dev", "uplink")
            for device in ("lo", "uplink"):
                self._ip(pid, "link", "set", device, "up")

    def ips(self):
        return [f"10.77.0.{node + 2}" for node in range(len(self.nodes))]

    def _write_programs(self, bin_folder):
        self.bin.mkdir()
        shutil.copy2(bin_folder / "paceline", self.bin)  # it starts what lies beside it
        for program in ("paceline-coordinator", "paceline-worker"):
            (self.bin / program).symlink_to(bin_folder / program)
        cases = "\n".join(f"    {name}) holder={pid} ip={ip} ;;" for name, pid, ip in
                          zip(self.names, self.nodes, self.ips()))
        agent = self.bin / "paceline-agent"
        agent.write_text(f"""#!/bin/sh
for argument; do
  [ "$previous" = --name ] && case "$argument" in
{cases}
  esac
  previous=$argument
done
exec nsenter --net=/proc/"$holder"/ns/net {shlex.quote(str(bin_folder / "paceline-agent"))} \\
  --address "$ip" "$@"
""")
        agent.chmod(0o755)

    def enter_hub(self):
        """For preexec_fn: of `paceline run`, and of whatever speaks to its coordinator."""
        enter(self.hub)

    def set_link(self, name, state):
        """`state`: "down" pulls the node's cable out of the hub, "up" puts it back."""
        self._ip(self.hub, "link", "set", name, state)


# --- the relays ---


@contextlib.contextmanager
def inside(pid):
    with open("/proc/thread-self/ns/net", "rb") as home:
        enter(pid)
        try:
            yield
        finally:
            ctypes.CDLL(None).setns(home.fileno(), CLONE_NEWNET)


async def pump(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class Relay:
    """Listens at one address of a name space, and passes each connection on to another."""

    def __init__(self, pid, listen_ip, target_ip):
        self.pid = pid
        self.listen_ip = listen_ip
        self.target_ip = target_ip
        self.server = None
        self.port = None

    async def listen(self, port):
        if self.port == port:
            return
        if self.server is not None:
            self.server.close()
            self.server = self.port = None
        with inside(self.pid):
            listener = socket.create_server((self.listen_ip, port))
        self.port = port
        self.server = await asyncio.start_server(
            lambda reader, writer: self.pass_on(reader, writer, port), sock=listener)

    async def pass_on(self, reader, writer, port):
        with inside(self.pid):
            target = socket.socket()
        target.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(target, (self.target_ip, port))
        except OSError:
            target.close()
            writer.close()
            return
        target_reader, target_writer = await asyncio.open_connection(sock=target)
        await asyncio.gather(pump(reader, target_writer), pump(target_reader, writer))


def port_of_coordinator(runs):
    for path in runs.glob("*/coordinator/coordinator.json"):
        try:
            return int(json.loads(path.read_text())["address"].rpartition(":")[2])
        except (OSError, ValueError):  # its coordinator goes
            continue
    return None


async def relay(runs, hub, nodes):
    relays = [Relay(hub, HUB_IP, "127.0.0.1"), *(Relay(node, "127.0.0.1", HUB_IP) for node in nodes)]
    told = None
    while True:
        port = port_of_coordinator(runs)
        for one in relays if port is not None else ():
            try:
                await one.listen(port)
            except OSError as error:  # somebody has the port for now
                if told != (told := f"relay to {one.target_ip}:{port}: {error}"):
                    print(told, file=sys.stderr, flush=True)
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(relay(pathlib.Path(sys.argv[1]), int(sys.argv[2]), [int(a) for a in sys.argv[3:]]))
