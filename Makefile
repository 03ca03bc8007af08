# What people type. `make help` lists the targets; each installs what it needs first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PATH := $(HOME)/.cache/meshd/tools/bin:$(HOME)/.cargo/bin:$(PATH)
export PATH

.PHONY: help setup build demo lab check test test-kernel deny bench mutants

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install what the other targets need (apt, as root)
	@tools/setup

build: setup ## the binaries, optimised
	cargo build --release --locked -p meshd -p cni -p wire -p meshctl

demo: build ## a three-node mesh in namespaces on this machine, with proof on screen (root)
	@tools/demo

lab: build ## a three-node mesh that stays: try `meshctl` on it (root)
	target/release/meshctl lab up three-nodes
	@echo 'Try: eval "$$(target/release/meshctl lab env)"; target/release/meshctl get nodes'
	@echo 'End: target/release/meshctl lab down'

check: setup ## the quick loop: format, clippy, docs, tidy, unit tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --locked
	cargo test --locked -p tidy
	cargo test --locked --workspace --lib --bins

test: setup ## everything, and one green line (root)
	@tools/test

test-kernel: setup ## the kernel's own WireGuard, under a test kernel (root)
	@tools/test-kernel

deny: setup ## licences, sources and bans of what we depend on
	cargo deny --all-features check bans licenses sources

bench: build ## figures, written where bench/README.md says (root)
	@bench/run

mutants: setup ## seeded faults: each must be killed by a test
	@tools/mutants
