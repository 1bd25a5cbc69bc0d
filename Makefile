# The front door: `make help` lists the targets.
#
#   make                 the release library, the examples and the monitor tcp_trace, in build/
#   make demo            the same, and the demonstration (as root)
#   make install PREFIX=/usr/local DESTDIR=/tmp/package
#   make install REALTIMEKQL=/opt/RealTimeKql

PREFIX  ?= /opt/RealTimeKql
DESTDIR ?=
# Where the files of the service tcp_trace go; empty: nowhere. Without root, everything is installed below PREFIX.
IF_ROOT      := $(if $(DESTDIR)$(filter 0,$(shell id -u)),yes)
UNITDIR      ?= $(if $(IF_ROOT),/usr/local/lib/systemd/system)
LOGROTATEDIR ?= $(if $(IF_ROOT),/etc/logrotate.d)
DEFAULTDIR   ?= $(if $(IF_ROOT),/etc/default)
# The folder of RealTimeKql, which looks for the library there under the name event.so; empty: no link is made.
REALTIMEKQL  ?=
CFLAGS  ?= -O2
CARGO   ?= cargo
# -Werror in .ci/run: a new warning of a later compiler must not stop a user's build. build.rs reads it too.
WERROR  ?=

# As in .ci/setup, which may install it there: Ubuntu's Rust of the minimal version.
RUST_LEAST := $(shell sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
export PATH := /usr/lib/rust-$(RUST_LEAST)/bin:$(PATH)

# rustup's folder is on the PATH of its users' shells, but not of sudo's.
ifneq ($(wildcard $(HOME)/.cargo/bin),)
export PATH := $(HOME)/.cargo/bin:$(PATH)
endif

VERSION    := $(shell sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
LIBRARY    := $(TARGET_DIR)/release/libtcpEvent.so
EXAMPLES   := $(wildcard examples/*.c examples/*.cs examples/*.py)
SAMPLES    := $(patsubst %.c,build/%,$(wildcard examples/*.c))
TABLE_C    := $(wildcard tcp_table/*.c)
TRACE      := examples/tcp_trace
TRACE_C    := $(wildcard $(TRACE)/*.c)
TRACE_ALL  := $(wildcard $(TRACE)/*)
PROGRAMS   := build/tcp_table build/tcp_trace
HEADERS    := $(wildcard include/*.h)
PAGES      := $(wildcard man/*.[1-8])
SCRIPTS    := $(wildcard .ci/run .ci/setup tests/vm/run tests/fresh/run)
PYTHON     := benches examples tests benches/run benches/cost tests/demo tests/vm/matrix
C_FILES    := $(wildcard bpf/*.[ch] tests/c/*.[ch] tests/c/*.cc examples/*.c examples/*/*.[ch] tcp_table/*.[ch] benches/c/*.[ch] benches/bpf/*.c)
# Debian has no ruff: it is fetched from PyPI.
RUFF_VERSION := 0.17.5
RUFF_DIR     := $(TARGET_DIR)/ruff-$(RUFF_VERSION)
RUFF         := $(RUFF_DIR)/bin/ruff

C_FLAGS := -std=c11 -Wall -Wextra $(WERROR) -pedantic -Iinclude -DTCPEVENT_VERSION='"$(VERSION)"' $(CPPFLAGS) $(CFLAGS)
# Whether tcp_trace can be built. Evaluated late, as setup may have installed libcurl just before.
HAS_CURL := printf '\043include <curl/curl.h>\n' | $(CC) $(CPPFLAGS) $(CFLAGS) -x c -fsyntax-only - 2>/dev/null
# The library is beside the program in build/, and in ../lib once both are installed.
RUN_PATH := -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib'
SAMPLE_PATH := -Wl,-rpath,'$$ORIGIN/..'

.DELETE_ON_ERROR:
# cargo uses all cores by itself, and two setups at once would wait for each other's apt.
.NOTPARALLEL:
.PHONY: all demo monitor test synthetic test-kernels test-fresh least soak bench cost micro tsan fuzz install uninstall clean help setup setup-test fmt format lint headers FORCE

all: $(PROGRAMS) $(SAMPLES) ## build the library, the examples and tcp_trace (the default)

demo: all ## show it at work: known loopback traffic, each event checked against it (as root)
	tests/demo

monitor: all ## show this host's connections until Ctrl-C (as root)
	@build/tcp_table

test: setup-test all synthetic ## run all tests (as root)
	$(CARGO) test --profile tests --locked

# The library that tests of tcp_trace load in place of the one that ships.
synthetic: | setup-test ## the library whose records come from a socket and not from a kernel, for tests without root
	$(CARGO) build --profile tests --locked --lib --features synthetic
	install -D -m 755 $(TARGET_DIR)/tests/libtcpEvent.so $(TARGET_DIR)/synthetic/libtcpEvent.so

# By hand, as it takes long. KERNELS, as in make test-kernels KERNELS=5.10: only those.
test-kernels: setup-test all ## the live tests under each kernel within reach, by each rung (as root, 90 minutes; MATRIX=--quick)
	$(CARGO) test --profile tests --locked --no-run --test live
	tests/vm/matrix --json $(TARGET_DIR)/vm/matrix.json $(MATRIX) $(KERNELS)

test-fresh: ## make demo in empty systems of Debian 12 and 13 (as root; needs debootstrap; minutes each; SUITES=trixie)
	tests/fresh/run $(SUITES)

# Finds, say, chains of `let`, which no lint reports. The toolchain takes 500 MB of disk.
least: | setup-test ## does all compile with the least Rust that Cargo.toml names? (needs rustup)
	@command -v rustup >/dev/null || { echo "rustup is missing: https://rustup.rs" >&2; exit 1; }
	rustup toolchain list | grep -q '^$(RUST_LEAST)-' || rustup toolchain install --profile minimal $(RUST_LEAST)
	$(CARGO) +$(RUST_LEAST) check --locked --all-targets --target-dir $(TARGET_DIR)/least

soak: setup-test all ## the long runs: a million connections, 10,000 signals, 1,000 restarts, 1,000 forks (as root, half an hour)
	TCPEVENT_SOAK=1 $(CARGO) test --profile tests --locked --test live -- --nocapture \
		nothing_is_lost cleanup_from_a_signal cycles_of_start children_forked_amid

bench: setup-test all ## what watching costs, beside tcplife, tcpstates and ss (as root, five minutes)
	benches/run --json target/bench/result.json $(BENCH)

# In an emulator whose clock counts instructions, so the figures do not depend on this machine.
cost: setup-test all ## what watching costs in instructions, under Linux 6.12 and 6.1 (as root; COST=--write for BENCHMARKS.md)
	benches/cost --json $(TARGET_DIR)/cost/result.json $(COST)

micro: | setup ## what an event costs within the library, part by part
	$(CARGO) bench --locked --bench micro

# The standard library is rebuilt: races can only be detected if its locks are instrumented too. A test asks for more memory
# than there is.
tsan: | setup-test ## the concurrent unit tests under ThreadSanitizer (needs rustup; minutes the first time)
	@ls "$$(rustc --print sysroot)/lib/rustlib/src/rust/library" >/dev/null 2>&1 || rustup component add rust-src
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=allocator_may_return_null=1 $(CARGO) test --lib --locked -Zbuild-std \
		--target "$$(rustc -vV | sed -n 's/^host: //p')" --target-dir $(TARGET_DIR)/tsan -- queue:: wake:: clock::

FUZZ_SECONDS ?= 600
FUZZ_TARGETS := $(patsubst fuzz/fuzz_targets/%.rs,%,$(wildcard fuzz/fuzz_targets/*.rs))

# Inputs worth keeping go to fuzz/target/corpus; fuzz/corpus has the seeds, and the input of each fixed finding.
fuzz: | setup-test ## each parser fed with hostile bytes, FUZZ_SECONDS each (600; needs cargo-fuzz; minutes to build)
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install cargo-fuzz --locked" >&2; exit 1; }
	RUSTC_BOOTSTRAP=1 $(CARGO) fuzz build --fuzz-dir fuzz
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/target/corpus/$$target fuzz/artifacts/$$target && \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir fuzz $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; \
	done

# Only cargo knows whether the library is out of date; if not, its time stays and nothing else is built.
$(LIBRARY): FORCE | setup
	$(CARGO) build --release --locked

build/libtcpEvent.so: $(LIBRARY)
	@mkdir -p build
	ln -srf $(LIBRARY) $@

build/tcp_table: $(TABLE_C) $(wildcard tcp_table/*.h) $(HEADERS) $(LIBRARY) build/libtcpEvent.so
	$(CC) $(C_FLAGS) $(LDFLAGS) $(RUN_PATH) -o $@ $(TABLE_C) -Lbuild -ltcpEvent -pthread

build/tcp_trace: $(TRACE_C) $(wildcard $(TRACE)/*.h) $(HEADERS) $(LIBRARY) build/libtcpEvent.so
	@if ! $(HAS_CURL); then \
		rm -f $@; \
		echo "tcp_trace is not built: there is no libcurl (Debian: apt-get install libcurl4-openssl-dev)" >&2; \
		exit 0; \
	fi; \
	set -x; $(CC) $(C_FLAGS) $(LDFLAGS) $(RUN_PATH) -o $@ $(TRACE_C) -Lbuild -ltcpEvent -lcurl -pthread

# In the compiler's default dialect, as their readers compile them. dlopen is not linked with the library.
$(SAMPLES): build/examples/%: examples/%.c $(HEADERS) $(LIBRARY) build/libtcpEvent.so
	@mkdir -p build/examples
	$(CC) $(C_FLAGS) -std=gnu11 $(LDFLAGS) $(SAMPLE_PATH) -Wl,--as-needed -o $@ $< -Lbuild -ltcpEvent -ldl

# Installs existing builds only, so that `make` needs no root and `sudo make install` no compiler.
install: ## install into $(DESTDIR)$(PREFIX)
	@ls -L build/libtcpEvent.so build/tcp_table >/dev/null 2>&1 || $(MAKE) --no-print-directory all
	install -d $(INSTALL_DIRS)
	install -m 755 $(LIBRARY) $(ROOT)/lib/libtcpEvent.so
	install -m 644 include/*.h $(ROOT)/include
	for program in $(PROGRAMS); do [ ! -e $$program ] || install -m 755 $$program $(ROOT)/bin || exit 1; done
	install -m 644 $(EXAMPLES) $(ROOT)/share/tcpEvent/examples
	install -m 644 $(TRACE_ALL) $(ROOT)/share/tcpEvent/$(TRACE)
	for page in $(PAGES); do install -m 644 $$page $(ROOT)/share/man/man$${page##*.} || exit 1; done
	printf '%s\n' "$$PKG_CONFIG_FILE" >$(ROOT)/lib/pkgconfig/tcpEvent.pc
	chmod 644 $(ROOT)/lib/pkgconfig/tcpEvent.pc
ifneq ($(REALTIMEKQL),)
	@[ -h $(EVENT) ] || [ ! -e $(EVENT) ] || { echo "$(EVENT) is there and is no link: move it away" >&2; exit 1; }
	ln -sfn $(PREFIX)/lib/libtcpEvent.so $(EVENT)
endif
ifneq ($(UNITDIR),)
	$(IF_TRACE) install -d $(DESTDIR)$(UNITDIR)
	$(IF_TRACE) sed 's|@PREFIX@|$(PREFIX)|g' $(TRACE)/tcp_trace.service >$(UNIT)
	$(IF_TRACE) chmod 644 $(UNIT)
endif
ifneq ($(LOGROTATEDIR),)
	$(IF_TRACE) install -d $(DESTDIR)$(LOGROTATEDIR)
	$(IF_TRACE) install -m 644 $(TRACE)/tcp_trace.logrotate $(ROTATION)
endif
ifneq ($(DEFAULTDIR),)
	$(IF_TRACE) install -d $(DESTDIR)$(DEFAULTDIR)
	$(IF_TRACE) [ -e $(DEFAULTS) ] || install -m 600 $(TRACE)/tcp_trace.default $(DEFAULTS)
endif

uninstall: ## remove what install put there, and the folders that are then empty
	rm -f $(ROOT)/lib/libtcpEvent.so $(ROOT)/lib/pkgconfig/tcpEvent.pc $(HEADERS:%=$(ROOT)/%) \
		$(PROGRAMS:build/%=$(ROOT)/bin/%) $(EXAMPLES:%=$(ROOT)/share/tcpEvent/%) \
		$(TRACE_ALL:%=$(ROOT)/share/tcpEvent/%) $(foreach page,$(PAGES),$(MAN_DIR)/$(notdir $(page))) \
		$(if $(UNITDIR),$(UNIT)) $(if $(LOGROTATEDIR),$(ROTATION))
ifneq ($(REALTIMEKQL),)
	@[ ! -h $(EVENT) ] || rm -f $(EVENT)
endif
ifneq ($(DEFAULTDIR),)
	@! cmp -s $(TRACE)/tcp_trace.default $(DEFAULTS) || rm -f $(DEFAULTS)
	@[ ! -e $(DEFAULTS) ] || echo "$(DEFAULTS) was edited, and stays"
endif
	@for folder in $(SERVICE_DIRS) $(INSTALL_DIRS) $(ROOT)/share $(ROOT); do rmdir "$$folder" 2>/dev/null || true; done

ROOT = $(DESTDIR)$(PREFIX)
INSTALL_DIRS = $(ROOT)/lib/pkgconfig $(ROOT)/lib $(ROOT)/include $(ROOT)/bin $(ROOT)/share/tcpEvent/$(TRACE) \
	$(ROOT)/share/tcpEvent/examples $(ROOT)/share/tcpEvent $(sort $(foreach page,$(PAGES),$(MAN_DIR))) $(ROOT)/share/man
# The folder of a `page`, by its section.
MAN_DIR = $(ROOT)/share/man/man$(subst .,,$(suffix $(page)))
# The service is installed if its program was built.
IF_TRACE = [ ! -e build/tcp_trace ] ||
UNIT     = $(DESTDIR)$(UNITDIR)/tcp_trace.service
EVENT    = $(DESTDIR)$(REALTIMEKQL)/event.so
ROTATION = $(DESTDIR)$(LOGROTATEDIR)/tcp_trace
DEFAULTS = $(DESTDIR)$(DEFAULTDIR)/tcp_trace
# The folders above belong to the system, or to a package.
SERVICE_DIRS = $(if $(UNITDIR),$(DESTDIR)$(UNITDIR) $(DESTDIR)$(dir $(UNITDIR))) \
	$(if $(LOGROTATEDIR),$(DESTDIR)$(LOGROTATEDIR)) $(if $(DEFAULTDIR),$(DESTDIR)$(DEFAULTDIR))

define PKG_CONFIG_FILE
prefix=$(PREFIX)
libdir=$${prefix}/lib
includedir=$${prefix}/include

Name: tcpEvent
Description: TCP connections of a Linux host, as events
Version: $(VERSION)
Libs: -L$${libdir} -ltcpEvent
Cflags: -I$${includedir}
endef
export PKG_CONFIG_FILE

headers: | setup ## write include/*.h, and what the documents say of an event, again from the Rust sources
	UPDATE_HEADERS=1 $(CARGO) test --profile tests --locked --test headers
	UPDATE_HEADERS=1 $(CARGO) test --profile tests --locked --test fields

fmt: | setup-test $(RUFF) ## is the code formatted? (make format does it)
	$(CARGO) fmt --check
	clang-format --dry-run --Werror $(C_FILES)
	$(RUFF) format --quiet --check --no-cache $(PYTHON)

format: | setup-test $(RUFF) ## format the code: Rust, C and Python
	$(CARGO) fmt
	clang-format -i $(C_FILES)
	$(RUFF) format --quiet --no-cache $(PYTHON)

# mandoc looks for referenced pages among the installed ones; tests/man.rs checks ours.
lint: | setup-test $(RUFF) ## clippy, ruff, mandoc, and shellcheck where there is one
	$(CARGO) clippy --profile tests --all-targets --locked -- -D warnings
	$(RUFF) check --quiet --no-cache $(PYTHON)
	! mandoc -Tlint $(PAGES) 2>/dev/null | grep -v 'referenced manual not found'
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SCRIPTS); shellcheck $(SCRIPTS); fi

$(RUFF): | setup-test
	python3 -m venv $(RUFF_DIR)
	$(RUFF_DIR)/bin/pip install --quiet --disable-pip-version-check ruff==$(RUFF_VERSION)

setup: ## install what a build needs, where it is missing (as root, by apt)
	@.ci/setup build

setup-test: ## the same for the tests
	@.ci/setup test

clean: ## remove all that was built
	rm -rf build
	$(CARGO) clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 13
