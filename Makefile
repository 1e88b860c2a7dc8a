# Every target installs from Debian's packages what it lacks, and says what could not be had before it starts.
CARGO  ?= cargo
# The programs that are linked statically (.cargo/rustc.sh), small for a release.
STATIC := $(CARGO) build --locked --profile static -p flota-runtime -p whoami && \
  for p in flota-runtime whoami; do install -m 755 target/static/$$p target/release/$$p.new && mv target/release/$$p.new target/release/$$p || exit 1; done

.PHONY: build dev demo test test-long bench bench-runtime deny format lint tools test-tools bench-tools
build: tools        ## release programs in target/release
	$(CARGO) build --locked --release -p flota-node -p flota-ctl
	$(STATIC)

dev: tools          ## the same for demo and tests, in target/debug
	$(CARGO) build --locked -p flota-node -p flota-ctl -p flota-runtime -p whoami --features flota-node/as-tested

demo: dev           ## a cluster, a service, a dead machine
	@bash deploy/examples/demo.sh target/debug

format: tools
	$(CARGO) fmt --all --check

lint: format deny   ## what `make test` checks while it compiles, without the tests; and the dependencies
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

deny: tools         ## the dependencies: advisories, licences, duplicates, sources (deny.toml)
	bash deploy/deny.sh

test: export RUSTC_WORKSPACE_WRAPPER = $(CURDIR)/.cargo/lint.sh
test: test-tools format dev  ## formatting, clippy, all tests
	bash tests/run.sh

test-long: dev      ## thousands of simulated clusters and a large one, power failures at each operation of long runs of the store, histories of real ones, traffic through them while nodes die, an upgrade from the landing before, one that rebalances by itself, and ones whose certificates expired while they were off; layers as umoci and containerd unpack them; in QEMU: the units under systemd, and the clusters' tests where control groups are v2
	$(CARGO) run --locked --release -p flota-tests --bin flota-simulate -- $(or $(FLOTA_SEED),1000) $(or $(FLOTA_SEEDS),3000)
	$(CARGO) run --locked --release -p flota-tests --bin flota-simulate -- --scale 1000 20000
	FLOTA_PROGRAMS=$(CURDIR)/target/debug $(CARGO) test --locked -p flota-tests --test real -- --ignored --nocapture --test-threads=1 --skip encryption:: --skip apparmors --skip upgrade::
	previous=$$(bash tests/previous.sh) && FLOTA_PROGRAMS=$(CURDIR)/target/debug FLOTA_PREVIOUS=$$previous $(CARGO) test --locked -p flota-tests --test real -- --ignored --nocapture upgrade::
	@bash deploy/tools.sh guest
	$(CARGO) test --locked -p flota-raft-store --lib -- --ignored
	$(CARGO) test --locked -p flota-image --test layers -- --ignored
	bash tests/guest/systemd.sh
	bash tests/guest/run.sh
	bash deploy/deny.sh

bench: build bench-tools    ## figures beside their targets
	$(CARGO) build --locked --release -p flota-tests --bin flota-writes --bin flota-simulate
	$(CARGO) build --locked --release -p flota-network --example balancer
	@python3 tests/bench/run.py target/release; status=$$?; $(MAKE) --no-print-directory bench-runtime && exit $$status

bench-runtime: bench-tools  ## those of the container runtime alone, beside crun's and runc's
	$(CARGO) build --locked --release -p flota-runtime --examples
	$(STATIC)
	@python3 tests/bench/runtime.py target/release target/release/examples

tools:
	@bash deploy/tools.sh

test-tools:
	@bash deploy/tools.sh test

bench-tools:
	@bash deploy/tools.sh bench
