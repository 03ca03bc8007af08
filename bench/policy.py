#!/usr/bin/env python3
"""What policy costs packets, and how long it takes to be in the kernel.

    bench/policy.py                  prints the figures
    bench/policy.py --write          the same, into bench/policy.md
    bench/policy.py --pairs 31 --seconds 2

One router for each number of pods, all there at the same time, each with the two pods that packets are sent between:

    a (10.65.0.2) ── caliA [ router: inet meshd, N pods x 11 rules ] caliB ── b (10.65.0.3)

A run is one TCP stream from a to b, then TCP echoes of one byte on a connection of their own. Runs come in pairs, one
with two pods and one with more, whose order changes from pair to pair, so that whatever else the machine does hits
both alike. The ratio is the median over all pairs; its interval is where 95 of 100 medians of samples drawn from the
pairs lie (bootstrap). CPU is the kernel's time on the whole machine for each 10^9 bytes.

What packets meet is traced by the kernel (nftrace): the rules that matched, and the expressions of all chains that
they stand in. Needs root, iproute2 and nftables; builds bench-policy itself.
"""
import argparse
import ctypes
import json
import os
import platform
import random
import re
import select
import socket
import statistics
import subprocess
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("MESHD_BENCH_POLICY", f"{ROOT}/target/release/bench-policy")
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
TICK = os.sysconf("SC_CLK_TCK")
BASE, COUNTS = 2, (100, 10_000)
CHANGED = (1_000, 10_000, 100_000)
A, B, PORT = "10.65.0.2", "10.65.0.3", 5001


def run(line, **options):
    done = subprocess.run(line.split(), text=True, capture_output=True, **options)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def inside(namespace, what):
    """Does something in a thread that has entered a namespace; sockets stay where they were made."""
    result = []

    def work():
        with open(f"/run/netns/{namespace}") as file:
            if LIBC.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        result.append(what())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return result[0]


class Router:
    """A router between two pods, with the policy of so many."""

    def __init__(self, count):
        self.count = count
        self.names = {end: f"mpbench{os.getpid()}x{count}{end}" for end in "rab"}
        for name in self.names.values():
            run(f"ip netns add {name}")

    def start(self):
        router = self.names["r"]
        for end, address in (("a", A), ("b", B)):
            device = f"cali{end.upper()}"
            run(f"ip -n {router} link add {device} type veth peer name eth0 netns {self.names[end]}")
            run(f"ip -n {router} link set {device} up")
            run(f"ip -n {router} addr add 169.254.1.1/32 dev {device}")
            run(f"ip -n {router} route add {address}/32 dev {device}")
            for line in (f"addr add {address}/32 dev eth0", "link set eth0 up", "link set lo up",
                         "route add 169.254.1.1 dev eth0 scope link", "route add default via 169.254.1.1 dev eth0"):
                run(f"ip -n {self.names[end]} {line}")
        run(f"ip netns exec {router} sysctl -qw net.ipv4.ip_forward=1")
        self.load = json.loads(run(f"ip netns exec {router} {PROGRAM} endpoints {self.count}"))
        self.listener = inside(self.names["b"], lambda: socket.create_server((B, PORT), backlog=64))

    def connect(self):
        def dial():
            return socket.create_connection((B, PORT), timeout=10)
        near = inside(self.names["a"], dial)
        far, _ = self.listener.accept()
        for end in (near, far):
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return near, far

    def stop(self):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name])


def kernel_time():
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:]]
    return (fields[2] + fields[5] + fields[6]) / TICK  # system, irq, softirq


def stream(router, seconds):
    """Returns Mb/s and the kernel's CPU seconds for each 10^9 bytes."""
    near, far = router.connect()
    taken = [0]

    def drain():
        buffer = bytearray(1 << 20)
        while count := far.recv_into(buffer):
            taken[0] += count
    thread = threading.Thread(target=drain)
    thread.start()
    block = bytes(1 << 20)
    spent, start = kernel_time(), time.monotonic()
    while time.monotonic() < start + seconds:
        near.sendall(block)
    near.close()
    thread.join()
    elapsed, spent = time.monotonic() - start, kernel_time() - spent
    far.close()
    return taken[0] * 8 / elapsed / 1e6, spent / (taken[0] / 1e9)


def echo(router, times):
    """Returns the median round trip in microseconds."""
    near, far = router.connect()

    def answer():
        while byte := far.recv(1):
            far.send(byte)
    thread = threading.Thread(target=answer)
    thread.start()
    trips = []
    for _ in range(times):
        start = time.perf_counter()
        near.send(b"x")
        near.recv(1)
        trips.append((time.perf_counter() - start) * 1e6)
    near.close()
    thread.join()
    far.close()
    return statistics.median(trips)


def trace(router):
    """Returns what the packet that opens a connection meets, and one that follows: rules matched, expressions."""
    name = router.names["r"]
    run(f"ip netns exec {name} nft -f -", input="table inet tracer { chain c { type filter hook prerouting priority -350; "
        f"ip protocol tcp tcp dport {PORT} meta nftrace set 1; }}; }}\n")
    monitor = subprocess.Popen(["ip", "netns", "exec", name, "stdbuf", "-oL", "nft", "monitor", "trace"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines, buffer = [], b""

    def read(patience):
        nonlocal buffer
        while select.select([monitor.stdout], [], [], patience)[0]:
            buffer += os.read(monitor.stdout.fileno(), 1 << 16)
            *whole, buffer = buffer.split(b"\n")
            lines.extend(line.decode() for line in whole)
            if not whole and not buffer:
                break
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len({line.split()[2] for line in lines if line.startswith("trace id")}) < 3:
        near, far = router.connect()
        near.send(b"x")
        far.recv(1)
        read(0.5)
        near.close()
        far.close()
    monitor.terminate()
    monitor.wait()
    run(f"ip netns exec {name} nft delete table inet tracer")
    packets = {}
    for line in lines:
        found = re.match(r"trace id (\w+) inet meshd (\S+) rule", line)
        if found:
            packets.setdefault(found[1], []).append(found[2])
    opening = max(packets.values(), key=len)
    following = min(packets.values(), key=len)
    return [(len(met), sum(expressions(name, chain) for chain in dict.fromkeys(met))) for met in (opening, following)]


def expressions(namespace, chain):
    listing = json.loads(run(f"ip netns exec {namespace} nft -j list chain inet meshd {chain}"))
    return sum(len(entry["rule"]["expr"]) for entry in listing["nftables"] if "rule" in entry)


def interval(ratios):
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[1949]


def fresh(what, count):
    """Loads policy into the kernel of a namespace of its own; returns the figures."""
    name = f"mpbench{os.getpid()}load"
    run(f"ip netns add {name}")
    try:
        return json.loads(run(f"ip netns exec {name} {PROGRAM} {what} {count}"))
    finally:
        subprocess.run(["ip", "netns", "del", name])


def loads(rounds):
    rows = ["| loaded | rules | chains | elements | compile ms | live ms (best, median, worst) | RSS MiB |", "|---|---|---|---|---|---|---|"]
    for what, count, title in (("endpoints", 10_000, "10,000 pods, 1,000 policies of 11 rules (110,000 rules' worth)"),
                               ("addresses", 100_000, "a set of 100,000 addresses")):
        found = sorted((fresh(what, count) for _ in range(rounds)), key=lambda each: each["live_ms"])
        middle = found[len(found) // 2]
        rows.append(f"| {title} | {middle['rules']} | {middle['chains']} | {middle['elements']} | {middle['compile_ms']:.0f} "
                    f"| {found[0]['live_ms']:.0f}, **{middle['live_ms']:.0f}**, {found[-1]['live_ms']:.0f} | {middle['rss_mib']:.0f} |")
    return rows


def changes():
    rows = ["| pods | change | object to kernel, ms: p50 | p99 | bytes sent |", "|---|---|---|---|---|"]
    for count in CHANGED:
        for change, took in fresh("changes", count).items():
            rows.append(f"| {count:,} | {change} | {took['p50_ms']:.2f} | {took['p99_ms']:.2f} | {took['bytes']} |")
    return rows


def paths(pairs, seconds):
    routers = {count: Router(count) for count in (BASE, *COUNTS)}
    try:
        for router in routers.values():
            router.start()
        rows = ["| pods | rules matched, opening / following | expressions of their chains | Mb/s | ratio | interval | CPU s/GB ratio | RTT us | ratio | interval |",
                "|---|---|---|---|---|---|---|---|---|---|"]
        met = {count: trace(router) for count, router in routers.items()}
        for count in COUNTS:
            runs = []
            for pair in range(pairs):
                order = (BASE, count) if pair % 2 else (count, BASE)
                run_of = {which: (*stream(routers[which], seconds), echo(routers[which], 300)) for which in order}
                runs.append((run_of[BASE], run_of[count]))
            ratios = [[loaded[index] / plain[index] for plain, loaded in runs] for index in range(3)]
            if count == COUNTS[0]:
                rows.append(row(BASE, met[BASE], [plain for plain, _ in runs], None))
            rows.append(row(count, met[count], [loaded for _, loaded in runs], ratios))
        return rows
    finally:
        for router in routers.values():
            router.stop()


def row(count, met, runs, ratios):
    (opening, opened), (following, followed) = met
    speed, _, trip = (statistics.median(values) for values in zip(*runs))
    cells = [f"{count}", f"{opening} / {following}", f"{opened} / {followed}", f"{speed:.0f}"]
    if ratios is None:
        return "| " + " | ".join([*cells, "", "", "", f"{trip:.1f}", "", ""]) + " |"
    middle = [statistics.median(each) for each in ratios]
    bounds = ["{:.3f} to {:.3f}".format(*interval(each)) for each in ratios]
    return "| " + " | ".join([*cells, f"**{middle[0]:.3f}**", bounds[0], f"{middle[1]:.3f} ({bounds[1]})",
                              f"{trip:.1f}", f"**{middle[2]:.3f}**", bounds[2]]) + " |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="cold loads of each kind")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if "MESHD_BENCH_POLICY" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "-p", "bench-policy"], cwd=ROOT, check=True)
    load = os.getloadavg()[0]
    table = [*loads(options.rounds), "", *changes(), "", *paths(options.pairs, options.seconds)]
    text = "\n".join(table)
    print(text)
    if options.write:
        path = f"{ROOT}/bench/policy.md"
        with open(path) as file:
            head, rest = file.read().split("<!-- figures -->\n")[0::2][:2]
        note = (f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {load:.1f}, {options.pairs} pairs, "
                f"{options.seconds:g} s a stream, {options.rounds} cold loads of each kind.")
        with open(path, "w") as file:
            file.write(f"{head}<!-- figures -->\n{note}\n\n{text}\n<!-- figures -->\n{rest}")


if __name__ == "__main__":
    main()
