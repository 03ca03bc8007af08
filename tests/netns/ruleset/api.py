#!/usr/bin/env python3
"""As much of a Kubernetes API as kube-proxy asks for: lists of fixed objects, and watches in which nothing happens.

    api.py PORT [FILE]

FILE is JSON with lists of `services`, `endpointslices` and `nodes`. Without one there are those below, whose addresses
stand for others: whoever loads a captured ruleset puts its own in their place (see ../tests/firewall.rs).
"""
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NODE = {"ipv4": "192.0.2.1", "ipv6": "2001:db8:2::1"}
CLUSTER = {"ipv4": "198.51.100.7", "ipv6": "2001:db8:51::7"}
POD = {"ipv4": "203.0.113.9", "ipv6": "2001:db8:113::9"}


def service(family, policy, number):
    name = f"{policy.lower()}-{family}"
    address = CLUSTER[family][:-1] + str(7 + number)
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": 80, "targetPort": 8080, "nodePort": 30080 + number}
        for protocol in ("TCP", "UDP")
    ]
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"s-{name}", "resourceVersion": "1"},
        "spec": {
            "type": "NodePort", "clusterIP": address, "clusterIPs": [address], "ipFamilies": [family.replace("ipv", "IPv")],
            "ipFamilyPolicy": "SingleStack", "ports": ports, "externalTrafficPolicy": policy, "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
        },
        "status": {"loadBalancer": {}},
    }


def slice_of(family, policy):
    name = f"{policy.lower()}-{family}"
    return {
        "metadata": {
            "name": name, "namespace": "shop", "uid": f"e-{name}", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": family.replace("ipv", "IPv"),
        "endpoints": [{"addresses": [POD[family]], "conditions": {"ready": True, "serving": True}, "nodeName": "n2"}],
        "ports": [{"name": p.lower(), "protocol": p, "port": 8080} for p in ("TCP", "UDP")],
    }


KINDS = [(family, policy) for family in ("ipv4", "ipv6") for policy in ("Cluster", "Local")]
NODES = [{
    "metadata": {"name": "n1", "uid": "n1", "resourceVersion": "1"},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
    "status": {"addresses": [{"type": "InternalIP", "address": NODE[f]} for f in NODE]},
}]
OBJECTS = {
    "services": [service(f, p, i) for i, (f, p) in enumerate(KINDS)],
    "endpointslices": [slice_of(*kind) for kind in KINDS],
    "nodes": NODES,
}
if len(sys.argv) > 2:
    with open(sys.argv[2]) as file:
        OBJECTS = json.load(file)
LISTS = {
    "/api/v1/services": ("v1", "ServiceList", OBJECTS["services"]),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSliceList", OBJECTS["endpointslices"]),
    "/api/v1/nodes": ("v1", "NodeList", OBJECTS["nodes"]),
    "/apis/networking.k8s.io/v1/servicecidrs": ("networking.k8s.io/v1", "ServiceCIDRList", []),
}


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.startswith("/api/v1/nodes/"):
            return self.answer(200, {"apiVersion": "v1", "kind": "Node", **OBJECTS["nodes"][0]})
        if path not in LISTS:
            return self.answer(404, {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})
        version, kind, items = LISTS[path]
        if "watch=" in query:
            return self.watch(version, kind, items if "sendInitialEvents=true" in query else None)
        return self.answer(200, {"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(201, {"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def watch(self, version, kind, items):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        one = kind.removesuffix("List")
        for item in items or []:
            self.event({"type": "ADDED", "object": {"apiVersion": version, "kind": one, **item}})
        if items is not None:
            note = {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}
            self.event({"type": "BOOKMARK", "object": {"apiVersion": version, "kind": one, "metadata": note}})
        self.rfile.read(1)  # until the client hangs up

    def event(self, event):
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Api).serve_forever()
