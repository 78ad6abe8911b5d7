# vmlockd. 'make help' lists what there is.

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -s -w -X main.version=$(VERSION)
# Packages with tests that need the lab, those that take longest first. Two run at a time: for the most part a lab waits, and with more
# of them its nodes miss what the cluster counts on.
LAB_PACKAGES = ./tests/cluster ./tests/identity ./tests/deadline ./tests/peers ./tests/doctor ./tests/crash ./tests/stress ./lab/... ./dlm/dlmtest/conformance/... \
	./internal/difftest/... ./tests/admin ./tests/local ./tests/prerequisites ./tests/session
# Of these the storage once more, without libvirt and of all kinds, and with libvirt the kinds that fewer hosts have.
STORAGE_CASES = ^TestRealStorage$$
LONG_CASES = $(STORAGE_CASES)|^TestRealStorageLibvirt$$/^(CIFS|Crypt|DRBD|ISCSI|MD|NBD|OCFS2)$$
# Of tests/guard some cases, of which one must find an overlap where no guard is.
GUARD_CASES = ^TestGuard$$/^(ConfirmDead|Cut|DaemonKilledWhileStopped|WithoutGuard)$$
# Of tests/peers, whose other one is about the commands as operators use them.
PEERS_CASES = ^TestGroupOfNodes$$
# Of tests/cluster, where no guard is, some beside one in its default mode.
GUARDED_CASES = ^(TestLibvirt|TestReplacesVirtlockd)$$/^(LiveMigration|DaemonKilled|UpgradeDuringMigration)$$
# Those for which there is no time in 'make test'.
MORE_LAB_PACKAGES = ./tests/guard ./tests/peers ./tests/packaging ./corosync/corosynctest/conformance/...

# The lab's own program, built once for all packages.
LAB_BINARY = CGO_ENABLED=0 $(GO) build -o bin/lab ./lab/cmd/lab
LAB_TEST = VMLOCKD_LAB=1 VMLOCKD_LAB_BINARY=$(CURDIR)/bin/lab scripts/told $(GO) test -count=1

.DEFAULT_GOAL := help
.PHONY: help build unit unit-long test lab-test lab-more faults chaos capture demo lint fuzz man bench bench-parts plots lab clean deb deb-test

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

build: ## build bin/vmlockd and bin/vmlockctl, without cgo
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

# A program with the race detector sleeps for a second when it ends, and the tests start many. 'make lint' has go vet for all of it,
# and 'make test' runs both.
UNIT_TEST = GORACE=atexit_sleep_ms=10 scripts/told $(GO) test -vet=off
# What is searched at random, or tried in all ways: with the race detector these skip it or do a part of it, so they run once more without.
WITHOUT_RACE = TestEachAssumptionCounts TestHistories TestInboundGoesOn TestNoOverlap TestOneNameAtATime
WITHOUT_RACE_PACKAGES = ./internal/backend/cluster ./internal/guard ./internal/identity ./internal/rpc ./tests/history
# What kills, or chooses, at random.
LONG = TestHistories TestKilledAtRandom TestKilledDaemonKeepsEveryLock TestNoOverlap TestReload TestStressLocal TestStressSimulated
LONG_PACKAGES = ./internal/backend/local ./internal/daemon ./internal/guard ./internal/journal ./tests/history ./tests/stress
empty :=
anyOf = ^($(subst $(empty) $(empty),|,$(1)))$$

unit: ## tests that need nothing but Go and a C compiler, with the race detector
	$(UNIT_TEST) -race ./...
	$(UNIT_TEST) -run '$(call anyOf,$(WITHOUT_RACE))' $(WITHOUT_RACE_PACKAGES)
	cd bench/plots && $(GO) test -vet=off .

unit-long: ## those of them that choose at random, with ten times as many rounds, and a reload with 15,000 locks
	VMLOCKD_HISTORIES=20000 VMLOCKD_SEEDS=250 VMLOCKD_KILLS=250 VMLOCKD_LOCKS=15000 VMLOCKD_STRESS_OPS=25000 \
		$(UNIT_TEST) -race -count=1 -timeout 60m -run '$(call anyOf,$(LONG))' $(LONG_PACKAGES)

lint: ## gofmt, go vet and staticcheck
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	staticcheck=$$($(GO) tool -n staticcheck) && cd bench/plots && $(GO) vet . && "$$staticcheck" .

lab-test: ## tests on cluster nodes with stock libvirt (root; boots User-Mode Linux)
	$(LAB_BINARY)
	VMLOCKD_STRESS_KILLS=$${VMLOCKD_STRESS_KILLS:-60} $(LAB_TEST) -p 2 -timeout 60m -skip '$(LONG_CASES)|$(PEERS_CASES)' $(LAB_PACKAGES)
	$(LAB_TEST) -run '^TestProcessIsFrozen$$' ./internal/guard
	$(LAB_TEST) -timeout 30m -run '$(GUARD_CASES)' ./tests/guard
	VMLOCKD_CHAOS_TIME=2m VMLOCKD_CHAOS_SEED=$${CHAOS_SEED:-496535} $(LAB_TEST) -v -timeout 30m -run '^TestChaos$$' ./tests/chaos

lab-more: ## more of these: guard, peers, corosync and the installation guide on a cluster, libvirt beside a guard, real storage without it, 200 kills under load, and 200 cut-off random workloads
	scripts/install-deps more
	$(LAB_BINARY)
	$(LAB_TEST) -p 1 -timeout 2h $(MORE_LAB_PACKAGES)
	VMLOCKD_LAB_GUARD=auto $(LAB_TEST) -timeout 30m -run '$(GUARDED_CASES)' ./tests/cluster
	$(LAB_TEST) -timeout 60m -run TestStressKills ./tests/stress
	$(LAB_TEST) -timeout 30m -run '$(LONG_CASES)' ./tests/identity
	$(LAB_TEST) -timeout 20m -run '^TestRefusedMessage$$' ./tests/chaos
	VMLOCKD_CRASH_ROUNDS=200 $(LAB_TEST) -timeout 60m -run 'TestKilledAtRandom|TestInTheLab' ./tests/crash

faults: ## the guard on real nodes, in every case, and docs/faults.md made anew of what happened
	scripts/install-deps more
	$(LAB_BINARY)
	VMLOCKD_FAULTS=$(CURDIR)/docs/faults.md $(LAB_TEST) -timeout 3h ./tests/guard

chaos: ## a seeded random mix of faults on real nodes, CHAOS_TIME (default 10m) long, CHAOS_SEED to play one again, CHAOS_SHAPE for one kind of cluster; docs/chaos.md
	scripts/install-deps test
	$(LAB_BINARY)
	VMLOCKD_CHAOS_TIME=$${CHAOS_TIME:-10m} VMLOCKD_CHAOS_SEED=$${CHAOS_SEED:-} VMLOCKD_CHAOS_SHAPE=$${CHAOS_SHAPE:-} $(LAB_TEST) -v -timeout 3h -run '^TestChaos$$' ./tests/chaos

test: ## installs what is missing, then lint, unit, a short fuzz and lab-test
	scripts/install-deps test
	$(MAKE) lint unit
	FUZZTIME=300x $(MAKE) fuzz
	$(MAKE) lab-test

capture: ## what the kernels of the lab's nodes say of each kind of disk, anonymised, into internal/identity/testdata/captured
	scripts/install-deps more
	$(LAB_BINARY)
	VMLOCKD_CAPTURE_DIR=$(CURDIR)/internal/identity/testdata/captured $(LAB_TEST) -timeout 30m -run '$(STORAGE_CASES)' ./tests/identity

demo: ## two hosts want one disk: see it refused, moved, and taken over once an operator says that its host is off
	scripts/install-deps demo
	$(MAKE) build
	$(GO) run ./lab/cmd/demo --vmlockd bin/vmlockd --vmlockctl bin/vmlockctl

fuzz: ## fuzz what reads bytes from outside, FUZZTIME (default 1m) for each
	@for f in $$(grep -rl --include='*_test.go' '^func Fuzz' .); do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$f); do \
			echo "$$f $$name"; $(GO) test -run '^$$' -fuzz "^$$name$$" -fuzztime $${FUZZTIME:-1m} -fuzzminimizetime 5s ./$$(dirname $$f) || exit 1; \
		done; \
	done

man: ## write the manual pages of vmlockctl anew
	$(GO) test ./internal/cli -run '^TestManPages$$' -update

# Each is told GO, and makes VERSION itself.
deb: ## build out/vmlockd_VERSION_ARCH.deb for amd64 and arm64, the same to the byte each time
	GO='$(GO)' scripts/deb

deb-test: ## test the package: lintian, and installed, upgraded and removed in a fresh Debian with systemd (root; installs what is missing)
	GO='$(GO)' scripts/deb-test

bench: ## measure restarts, memory, deaths, throughput, recovery and curves, beside virtlockd, the bare DLM and sanlock, and draw plots (root; takes an hour)
	-scripts/install-deps bench
	mkdir -p out
	$(GO) run ./bench --json out/bench.json --markdown out/bench.md; status=$$?; $(PLOTS) && exit $$status

# The library for plots is the dependency of a module of its own, and of nothing else.
PLOTS = cd bench/plots && $(GO) run . $(CURDIR)/out/bench.json $(CURDIR)/out/plots

plots: ## draw the plots of out/bench.json into out/plots
	$(PLOTS)

bench-parts: ## Go benchmarks of the parts
	$(GO) test -run '^$$' -bench . -benchmem ./dlm/... ./internal/...

lab: ## how to play with a cluster of your own
	@$(GO) run ./lab/cmd/lab --help

clean: ## remove what was built
	rm -rf bin out
