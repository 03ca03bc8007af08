#!/usr/bin/env python3
"""What a flood of strangers costs an established tunnel.

    bench/flood.py                      50,000 datagrams a second of every kind, five rounds
    bench/flood.py --write              the same, into bench/flood.md
    bench/flood.py --rate 20000 --kinds initiations,garbage --rounds 3

Two namespaces have a tunnel, and a TCP stream goes through it towards b; a third is a stranger's, with a cable of its own
to b. Each round measures, one after the other and so under the same other load:

    quiet      no flood
    beside     the flood goes to a port of b that nothing listens on and whose datagrams are dropped on arrival
    at         the same flood goes to the tunnel's port

On one machine the stranger takes its processor time from the tunnel, which strangers elsewhere do not: `beside` has that
cost, and that of b's kernel taking the datagrams in, so at : beside is what the flood costs because WireGuard listens.
The generator is pinned to the last CPU in both; nothing else is pinned. Needs root, iproute2, nftables, wireguard-tools,
iperf3, taskset; builds: cargo build --release -p wire -p flood.

Columns: Mb/s of the stream (median of rounds) in the three; the median of the rounds' ratios; CPU s/GB: what b's meshwire
used for each 10^9 bytes of the stream; flood CPU: share of one CPU that the generator took; taken: of the flood's
datagrams, those that the tunnel's socket had room for; idle: share of one CPU that b's meshwire took for the flood
alone, without the stream; RSS: b's meshwire in MiB, before all and after.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys

import wire
from wire import End, ROOT, run

FLOOD = f"{ROOT}/target/release/flood"
KINDS = {
    "initiations": ("handshake initiations, one source", "--kind initiations"),
    "forged": ("handshake initiations, 131,000 forged sources", "--kind initiations --forge 198.18.0.0/15"),
    "forged6": ("the same over IPv6, each from another network", "--kind initiations --forge 2001:db8:100::/40"),
    "responses": ("handshake responses, forged sources", "--kind responses --forge 198.18.0.0/15"),
    "data": ("data for unknown sessions, 1,452 bytes, forged sources", "--kind data --forge 198.18.0.0/15"),
    "garbage": ("garbage of up to 1,472 bytes", "--kind garbage"),
}


class Stranger:
    """A namespace with a cable to b."""

    def __init__(self, b):
        self.b = b
        self.namespace = f"mwbench{os.getpid()}x9"
        run(f"ip netns add {self.namespace}")
        run(f"ip link add e9 netns {b.namespace} type veth peer name e0 netns {self.namespace}")
        for namespace, device, number in ((b.namespace, "e9", 2), (self.namespace, "e0", 9)):
            run(f"ip -n {namespace} addr add 198.51.100.{number}/24 dev {device}")
            run(f"ip -n {namespace} addr add 2001:db8:9::{number}/64 dev {device} nodad")
            run(f"ip -n {namespace} link set {device} up")
        run(f"ip -n {b.namespace} route add 198.18.0.0/15 via 198.51.100.9")
        run(f"ip -n {b.namespace} route add 2001:db8:100::/40 via 2001:db8:9::9")
        run(f"ip netns exec {b.namespace} sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.e9.rp_filter=0")
        run(f"ip netns exec {b.namespace} nft -f -", input="""
            table inet beside { chain early { type filter hook prerouting priority -400; udp dport 9 drop; }; }""")

    def flood(self, port, options, rate, seconds):
        target = "[2001:db8:9::2]" if "2001:" in options else "198.51.100.2"
        line = (f"ip netns exec {self.namespace} taskset -c {os.cpu_count() - 1} {ARGUMENTS.flood} {target}:{port} "
                f"--key {self.b.public} --rate {rate} --seconds {seconds} {options}")
        return subprocess.Popen(line.split(), stdout=subprocess.PIPE, text=True)

    def stop(self):
        subprocess.run(["ip", "netns", "del", self.namespace])


def datagrams(end):
    """UDP datagrams that reached a socket, and those that found it full."""
    text = run(f"ip netns exec {end.namespace} cat /proc/net/snmp")
    names, values = [line.split()[1:] for line in text.splitlines() if line.startswith("Udp:")]
    four = dict(zip(names, map(int, values)))
    six = dict(line.split() for line in run(f"ip netns exec {end.namespace} cat /proc/net/snmp6").splitlines())
    return tuple(four[name] + int(six[f"Udp6{name}"]) for name in ("InDatagrams", "RcvbufErrors"))


def measure(a, b, stranger, port, options):
    """The stream's Mb/s, b's CPU seconds per GB, and what the flood did."""
    flood = stranger.flood(port, options, ARGUMENTS.rate, ARGUMENTS.seconds + 1.5) if port else None
    before = b.spent()
    bits, moved = wire.stream(a, b, "", ARGUMENTS.seconds)
    figures = {"mbps": bits / 1e6, "cpu": (b.spent() - before) / (moved / 1e9)}
    if flood:
        sent = json.loads(flood.communicate(timeout=30)[0])
        figures["share"] = sent["processor"] / sent["seconds"]
        figures["pps"] = sent["datagrams"] / sent["seconds"]
        figures["sent"] = sent["datagrams"]
    return figures


def share(b, stranger, options):
    """What b's meshwire takes of one CPU for the flood alone."""
    before = b.spent()
    sent = json.loads(stranger.flood(51820, options, ARGUMENTS.rate, ARGUMENTS.seconds).communicate(timeout=30)[0])
    return (b.spent() - before) / sent["seconds"]


def under(kind, a, b, stranger):
    """All rounds of one kind; one row of the table."""
    title, options = KINDS[kind]
    rounds, lost = [], 0
    for number in range(ARGUMENTS.rounds):
        one = {"quiet": measure(a, b, stranger, None, options), "beside": measure(a, b, stranger, 9, options)}
        full = datagrams(b)[1]
        one["at"] = measure(a, b, stranger, 51820, options)
        lost += datagrams(b)[1] - full
        rounds.append(one)
        print(f"{kind} round {number + 1}: {json.dumps(one)}", file=sys.stderr, flush=True)

    def median(arm, key):
        return statistics.median(one[arm][key] for one in rounds)

    def ratio(over, under):
        return statistics.median(one[over]["mbps"] / one[under]["mbps"] for one in rounds)
    idle = share(b, stranger, options)
    sent = sum(one["at"]["sent"] for one in rounds)
    return (f"| {title} | {median('at', 'pps') / 1e3:.0f} | " + " | ".join(f"{median(arm, 'mbps'):.0f}" for arm in ("quiet", "beside", "at"))
            + f" | **{ratio('at', 'beside'):.2f}** | {ratio('at', 'quiet'):.2f} | "
            + " | ".join(f"{median(arm, 'cpu'):.2f}" for arm in ("quiet", "beside", "at"))
            + f" | {median('at', 'share'):.0%} | {1 - lost / max(sent, 1):.0%} | {idle:.0%} |")


def compare(kinds):
    ends, stranger = [], None
    try:
        for number in (1, 2):
            ends.append(End(number, ARGUMENTS.meshwire))
        a, b = ends
        run(f"ip link add e0 netns {a.namespace} mtu 1500 type veth peer name e0 netns {b.namespace} mtu 1500")
        for end in ends:
            end.start()
        b.connect(a, 1420)
        a.connect(b, 1420)
        stranger = Stranger(b)
        wire.stream(a, b, "", 1)
        before = b.rss()
        session = run(f"wg show {b.device} latest-handshakes")
        rows = [under(kind, a, b, stranger) for kind in kinds]
        kept = "none was begun or ended" if run(f"wg show {b.device} latest-handshakes") == session else "renewed by their age"
        yield (f"Linux {os.uname().release.split('-')[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {ARGUMENTS.rounds} rounds, "
               f"{ARGUMENTS.seconds} s a TCP run, MTU 1420, {ARGUMENTS.rate} datagrams a second asked for. RSS of b's meshwire: "
               f"{before:.1f} MiB before, {b.rss():.1f} MiB after. Sessions: {kept}.")
        yield ""
        yield "| flood | kpps | quiet Mb/s | beside | at | at : beside | at : quiet | CPU s/GB quiet | beside | at | flood CPU | taken | idle |"
        yield "|---" * 13 + "|"
        yield from rows
    finally:
        if stranger:
            stranger.stop()
        for end in ends:
            end.stop()


PAGE = """# meshwire under a flood of strangers

```
cargo build --release -p wire -p flood && bench/flood.py {arguments}
```

A TCP stream through an established tunnel, while somebody who knows nothing but the receiver's public key floods its port. All of it
shares the machine's CPUs, and maybe other work goes on beside it: the ratio *at : beside* is the figure to trust; what it compares, and what the
columns mean, stands at the top of `flood.py`.
"""


def main():
    global ARGUMENTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each TCP run")
    parser.add_argument("--rate", type=int, default=50_000, help="datagrams a second")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--meshwire", default=wire.KNOWN["meshwire"], metavar="COMMAND {}")
    parser.add_argument("--flood", default=FLOOD, metavar="PROGRAM")
    parser.add_argument("--write", action="store_true", help="write bench/flood.md")
    ARGUMENTS = parser.parse_args()
    for tool in ("ip", "wg", "iperf3", "nft", "taskset", ARGUMENTS.flood):
        if not shutil.which(tool):
            sys.exit(f"missing: {tool}")
    unknown = [kind for kind in ARGUMENTS.kinds.split(",") if kind not in KINDS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(KINDS)}")
    text = "\n".join(compare(ARGUMENTS.kinds.split(","))) + "\n"
    if ARGUMENTS.write:
        shown = f"--rounds {ARGUMENTS.rounds} --seconds {ARGUMENTS.seconds} --rate {ARGUMENTS.rate} --write"
        text = PAGE.format(arguments=shown) + "\n" + text
        with open(f"{ROOT}/bench/flood.md", "w") as file:
            file.write(text)
    print(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    main()
