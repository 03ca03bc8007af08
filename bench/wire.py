#!/usr/bin/env python3
"""Puts meshwire beside other userspace WireGuards: the same namespaces, the same minutes, the same load.

    bench/wire.py                                  meshwire, boringtun, wireguard-go; three rounds, MTU 1420
    bench/wire.py --write                          the same, at two MTUs, into bench/wire.md
    bench/wire.py --rounds 5 --mtu 8920 --seconds 5
    bench/wire.py boringtun meshwire plain="target/release/meshwire --foreground --offload none {}"

Each round runs each implementation once, one after the other, so that whatever else the machine does hits all of
them alike; the table shows medians, and the ratio to the first one named. Both ends are the same implementation, in
two network namespaces on one veth pair, which are removed afterwards. Needs root, iproute2, wireguard-tools, iperf3.

Columns: tcp1, tcp4: Mb/s of one and of four TCP streams. both: Mb/s of both directions at once, added. CPU s/GB: what
both daemons used (user and system) for each 10^9 bytes of tcp1; hardly moved by other load on the machine, thus the
figure to trust. RTT: median of 64 byte UDP echoes on the idle tunnel, in us. loaded: the same beside one TCP stream,
median and 99th percentile, in ms. idle, RSS: MiB of the larger daemon before and after the load.
"""
import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOLS = os.environ.get("MESHD_TOOLS", os.path.expanduser("~/.cache/meshd/tools")) + "/bin/"
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
TICK = os.sysconf("SC_CLK_TCK")
KNOWN = {
    "meshwire": f"{ROOT}/target/release/meshwire --foreground {{}}",
    "boringtun": f"{TOOLS}boringtun-cli --foreground --disable-drop-privileges {{}}",
    "boringtun-1": f"{TOOLS}boringtun-cli --threads 1 --foreground --disable-drop-privileges {{}}",
    "wireguard-go": "wireguard-go --foreground {}",
}
COLUMNS = [
    ("tcp1", "tcp1", 0), ("tcp4", "tcp4", 0), ("both", "both", 0), ("CPU s/GB", "cpu", 2), ("RTT us", "rtt", 0),
    ("loaded p50 ms", "loaded", 2), ("p99 ms", "loaded99", 2), ("idle MiB", "idle", 1), ("RSS MiB", "rss", 1),
]


def run(line, **options):
    done = subprocess.run(line.split(), text=True, capture_output=True, **options)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def until(what, fact, seconds=10):
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain: {what}")
        time.sleep(0.02)


class End:
    """One namespace with one daemon."""

    def __init__(self, number, command):
        self.number = number
        self.namespace = f"mwbench{os.getpid()}x{number}"
        self.device = f"mwb{os.getpid()}x{number}"
        self.command = command
        self.daemon = None
        run(f"ip netns add {self.namespace}")

    def start(self):
        for line in (
            "link set lo up",
            f"addr add 10.1.0.{self.number}/24 dev e0",
            "link set e0 up",
        ):
            run(f"ip -n {self.namespace} {line}")
        line = f"ip netns exec {self.namespace} " + self.command.replace("{}", self.device)
        environment = dict(os.environ, WG_PROCESS_FOREGROUND="1", LOG_LEVEL="error", WG_SUDO="1")
        self.daemon = subprocess.Popen(line.split(), env=environment, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("a UAPI socket", lambda: os.path.exists(f"/var/run/wireguard/{self.device}.sock"))

        def answers():
            return subprocess.run(["wg", "show", self.device], capture_output=True).returncode == 0
        until("an answer to wg", answers)
        self.private = run("wg genkey")
        self.public = run("wg pubkey", input=self.private).strip()

    def connect(self, other, mtu):
        run(f"wg set {self.device} private-key /dev/stdin listen-port 51820 peer {other.public} "
            f"allowed-ips 10.5.0.{other.number}/32 endpoint 10.1.0.{other.number}:51820", input=self.private)
        run(f"ip -n {self.namespace} addr add 10.5.0.{self.number}/24 dev {self.device}")
        run(f"ip -n {self.namespace} link set {self.device} mtu {mtu} up")

    def spent(self):
        with open(f"/proc/{self.daemon.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def rss(self):
        with open(f"/proc/{self.daemon.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024

    def exec(self, line):
        return ["ip", "netns", "exec", self.namespace] + line.split()

    def enter(self):
        with open(f"/run/netns/{self.namespace}") as file:
            if LIBC.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")

    def stop(self):
        if self.daemon:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(5)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        subprocess.run(["ip", "netns", "del", self.namespace])
        try:
            os.unlink(f"/var/run/wireguard/{self.device}.sock")
        except FileNotFoundError:
            pass


def stream(a, b, options, seconds):
    """Bits a second that arrived, and bytes."""
    server = subprocess.Popen(b.exec("iperf3 --server --one-off"), stdout=subprocess.PIPE, text=True)
    try:
        until("iperf3 listens", lambda: ":5201 " in run(" ".join(b.exec("ss -lnt"))))
        text = subprocess.run(a.exec(f"iperf3 --client 10.5.0.2 --time {seconds} --json {options}"),
                              capture_output=True, text=True, timeout=seconds + 30).stdout
        result = json.loads(text)
        if "error" in result:
            raise RuntimeError(result["error"])
        end = result["end"]
        received = [end["sum_received"], end.get("sum_received_bidir_reverse")]
        return (sum(one["bits_per_second"] for one in received if one),
                sum(one["bytes"] for one in received if one))
    finally:
        try:
            server.wait(2)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def echoes(a, b, count, pause):
    """Round trip times of UDP echoes, sorted, in seconds."""
    ready, times = threading.Event(), []

    def answer():
        b.enter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("10.5.0.2", 7007))
            server.settimeout(2)
            ready.set()
            try:
                while True:
                    data, peer = server.recvfrom(100)
                    server.sendto(data, peer)
                    if data.startswith(b"last"):
                        return
            except TimeoutError:
                return

    def ask():
        a.enter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            client.connect(("10.5.0.2", 7007))
            for number in range(count):
                data = (b"last" if number == count - 1 else b"more") + number.to_bytes(60, "big")
                begin = time.perf_counter()
                client.send(data)
                try:
                    while client.recv(100) != data:
                        pass
                    times.append(time.perf_counter() - begin)
                except TimeoutError:
                    times.append(1.0)
                time.sleep(pause)

    server, client = threading.Thread(target=answer), threading.Thread(target=ask)
    server.start()
    if not ready.wait(5):
        raise RuntimeError("the echo server did not start")
    client.start()
    client.join()
    server.join()
    return sorted(times)


def measure(command, mtu, seconds):
    ends = []
    try:
        for number in (1, 2):
            ends.append(End(number, command))
        a, b = ends
        run(f"ip link add e0 netns {a.namespace} mtu {mtu + 80} type veth "
            f"peer name e0 netns {b.namespace} mtu {mtu + 80}")
        for end in ends:
            end.start()
        b.connect(a, mtu)
        a.connect(b, mtu)
        echoes(a, b, 20, 0.01)
        figures = {"idle": max(end.rss() for end in ends)}
        idle = echoes(a, b, 400, 0.002)
        figures["rtt"] = idle[len(idle) // 2] * 1e6
        before = sum(end.spent() for end in ends)
        bits, moved = stream(a, b, "", seconds)
        figures["cpu"] = (sum(end.spent() for end in ends) - before) / (moved / 1e9)
        figures["tcp1"] = bits / 1e6
        figures["tcp4"] = stream(a, b, "--parallel 4", seconds)[0] / 1e6
        figures["both"] = stream(a, b, "--bidir", seconds)[0] / 1e6
        load = threading.Thread(target=stream, args=(a, b, "", seconds))
        load.start()
        time.sleep(0.5)
        loaded = echoes(a, b, int((seconds - 1) * 100), 0.01)
        load.join()
        figures["loaded"] = loaded[len(loaded) // 2] * 1e3
        figures["loaded99"] = loaded[int(len(loaded) * 0.99)] * 1e3
        figures["rss"] = max(end.rss() for end in ends)
        return figures
    finally:
        for end in ends:
            end.stop()


def table(results, mtu):
    yield f"| MTU {mtu} | " + " | ".join(title for title, _, _ in COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    medians = {
        name: {key: statistics.median(one[key] for one in rounds) for _, key, _ in COLUMNS}
        for name, rounds in results.items() if rounds
    }
    for name, median in medians.items():
        yield f"| {name} | " + " | ".join(f"{median[key]:.{digits}f}" for _, key, digits in COLUMNS) + " |"
    first, *others = medians
    for other in others:
        ratios = (medians[first][key] / medians[other][key] for _, key, _ in COLUMNS)
        yield f"| {first} : {other} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"


PAGE = """# meshwire beside other userspace WireGuards

```
cargo build --release -p wire && bench/wire.py {arguments}
```

Both ends of a tunnel and iperf3 share the machine's cores, and maybe other work goes on beside them: compare the rows of one table,
not the tables. What the columns mean stands at the top of `wire.py`. boringtun is boringtun-cli 0.7.1 with its default of four
threads, boringtun-1 the same with one; wireguard-go is Debian bookworm's (0.0.20220316).
"""


def compare(commands, mtu, arguments):
    """One table."""
    results = {name: [] for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            figures = measure(command, mtu, arguments.seconds)
            results[name].append(figures)
            shown = {key: round(value, 2) for key, value in figures.items()}
            print(f"MTU {mtu} round {number + 1} {name}: {json.dumps(shown)}", file=sys.stderr, flush=True)
    lines = [f"Linux {os.uname().release.split('-')[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, median of "
             f"{arguments.rounds} rounds, {arguments.seconds} s a TCP run.", "", *table(results, mtu)]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("implementations", nargs="*", metavar="NAME[=COMMAND {}]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each TCP run")
    parser.add_argument("--mtu", type=int, default=1420, help="of the tunnel; the underlay gets 80 more")
    parser.add_argument("--write", action="store_true", help="run the baseline and write bench/wire.md")
    arguments = parser.parse_args()
    for tool in ("ip", "wg", "iperf3", "ss"):
        if not shutil.which(tool):
            sys.exit(f"missing: {tool}")
    commands = {}
    for one in arguments.implementations or ["meshwire", "boringtun", "boringtun-1", "wireguard-go"]:
        name, _, command = one.partition("=")
        if not command and name not in KNOWN:
            sys.exit(f"unknown: {name}; known: {', '.join(KNOWN)}")
        commands[name] = command or KNOWN[name]
    if not arguments.write:
        print(compare(commands, arguments.mtu, arguments))
        return
    pages = [PAGE.format(arguments=" ".join(sys.argv[1:])), compare(commands, 1420, arguments), compare(commands, 8920, arguments)]
    with open(f"{ROOT}/bench/wire.md", "w") as file:
        file.write("\n".join(pages))
    print("\n".join(pages))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    main()
