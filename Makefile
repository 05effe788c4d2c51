# noded: `make` says what there is.
.DEFAULT_GOAL := help
.PHONY: help build run test test-unit test-vm lint clean noded deps

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null | sed 's/^v//' || true)
RUNC_VERSION := 1.5.2

# The checkout may belong to another user than root, who builds it: git then
# refuses to be asked for its commit, and the version comes without it.
export GOFLAGS := -buildvcs=false $(GOFLAGS)

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: noded bin/runc ## bin/noded (static) and bin/runc (pinned, with seccomp)

noded:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=0.1.0-dev$(addprefix +,$(VERSION))" -o bin/noded ./cmd/noded

# runc is a module of its own: its dependencies are not noded's.
bin/runc: hack/runc/go.mod hack/runc/go.sum | deps
	cd hack/runc && CGO_ENABLED=1 go build -trimpath -tags seccomp -ldflags "-X main.version=$(RUNC_VERSION) -s -w" -o ../../bin/runc github.com/opencontainers/runc

deps:
	@hack/deps.sh

run: build ## the tutorial: a registry, an image, a pod with a web server, and all of it removed (as root)
	@hack/run.sh

test: build lint ## all tests (as root)
	hack/test.sh

test-unit: ## the tests that need neither root nor Debian packages
	hack/test.sh unit

test-vm: build ## the tests of cgroup v2, in a virtual machine with Debian's kernel
	hack/vm.sh

lint: ## gofmt, vet, staticcheck, the design's import rules and size budgets
	hack/lint.sh

clean: ## remove what was built
	rm -rf bin
