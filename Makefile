# Every target does its own set-up: scripts/bootstrap finds or installs uv and Python, then syncs an environment.

.DEFAULT_GOAL := help

# Images for containers often set it. The tests start a thousand Pythons, and each would compile all that it imports.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup dev quick test test_lowest test_rabbitmq_3_10 lint format docs catalogues servers demo ledger streams relay crash_points redis_failover jobs sagas bot_replicas sending stops trace properties schemathesis

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9_]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

setup: ## Prepare .venv for work on the sources
	@scripts/bootstrap dev

test: ## Run every gate: format, types, imports, security, docs, then the tests on the built wheel
	@scripts/bootstrap test
	@$(MAKE) --no-print-directory servers || echo "make: no local servers were built: tests that need them skip (and fail in CI)"
	@HYBRIDKIT_TEST_WHEEL=1 .venv-test/bin/python scripts/gates.py

test_lowest: ## Run the tests on the lowest versions that pyproject.toml allows
	@scripts/bootstrap lowest
	@$(MAKE) --no-print-directory servers || echo "make: no local servers were built: tests that need them skip (and fail in CI)"
	@HYBRIDKIT_TEST_WHEEL=1 .venv-lowest/bin/python scripts/gates.py --tests

rabbitmq_3_10 = $(or $(XDG_CACHE_HOME),$(or $(HOME),/root)/.cache)/hybridkit/rabbitmq_3_10
on_rabbitmq_3_10 = env -u HYBRIDKIT_RABBITMQ_URL -u HYBRIDKIT_REDIS_URL HYBRIDKIT_SERVER_ROOT=$(rabbitmq_3_10)
messaging_tests = $(wildcard $(addprefix tests/integration/test_,messaging_*.py traps_*.py topology_*.py dead_letters.py))

test_rabbitmq_3_10: ## Run the messaging tests on the oldest RabbitMQ that is supported; as root, Linux only
	@scripts/bootstrap test
	@$(on_rabbitmq_3_10) scripts/servers/build rabbitmq_3_10
	@$(on_rabbitmq_3_10) .venv-test/bin/python scripts/servers/check.py "RabbitMQ 3.10"
	@$(on_rabbitmq_3_10) .venv-test/bin/python scripts/gates.py --tests $(messaging_tests)

lint: setup ## Run the gates that need no tests, on the sources
	@.venv/bin/python scripts/gates.py --static

quick: setup ## Run ruff, mypy, import-linter and the unit tests of what differs from main; a minute
	@.venv/bin/python scripts/gates.py --quick

format: setup ## Format the code and apply ruff's safe fixes
	@.venv/bin/ruff check --fix --quiet . || true
	@.venv/bin/ruff format .

docs: setup ## Build the documentation in site/
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

servers: ## Build PostgreSQL, MongoDB, Redis and RabbitMQ for this machine, where there is no container engine
	@scripts/servers/build

demo: setup ## Run the five services on real servers and drive the scenario
	@$(MAKE) --no-print-directory servers || echo "make: no local servers were built: the demo takes what it finds"
	@.venv/bin/python -m examples.demo

catalogues: setup ## Compile hybridkit's own texts, after a change to a .po file
	@.venv/bin/pybabel --quiet compile --domain hybridkit --directory src/hybridkit/adapters/_locales

dev: setup ## Run the five services with their servers, and restart what changes, until Ctrl-C
	@$(MAKE) --no-print-directory servers || echo "make: no local servers were built: hybridkit dev takes what it finds"
	@.venv/bin/hybridkit dev

ledger: setup ## Prove that no message is lost or doubled while brokers die, freeze and restart; 10 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.ledger
	@.venv/bin/python -m tests.proofs.ledger --cluster

streams: setup ## Prove that readers of a log miss no late commit, and that streams survive races, stops and a restore; that projections count each event once; 10 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.streams
	@.venv/bin/python -m tests.proofs.projections

relay: setup ## Prove that the outbox loses nothing and keeps the order while its replicas are killed; 4 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.relay

crash_points: setup ## Prove that a handler killed at every await, and 200 times at random, has each effect once; 15 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.crash_points

redis_failover: setup ## Prove that fail-overs of Redis lose nothing and hang nobody, by sentinels and in a cluster; 3 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.redis_failover

jobs: setup ## Prove that each slot of a job has its effects once, over replicas that die and a clock that jumps; 4 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.jobs

sagas: setup ## Prove that a saga comes to its end, with each effect once, whatever dies or freezes; half an hour
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.sagas

stops: setup ## Prove that 100 stops of each kind of process in mid work lose nothing and double nothing; 20 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.stops

sending: setup ## Prove that two processes of a bot together keep Telegram's limits; half a minute
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.sending

ecs: setup ## Prove that a strict index of OpenSearch accepts every log line of the five services; needs Java and Maven; 2 minutes
	@$(MAKE) --no-print-directory servers || echo "make: no local servers were built: the demo takes what it finds"
	@.venv/bin/python -m tests.proofs.ecs

bot_replicas: setup ## Prove that three replicas of a bot handle 10,000 updates once, in order, though one is killed; 3 minutes
	@$(MAKE) --no-print-directory servers
	@.venv/bin/python -m tests.proofs.bot_replicas

trace: setup ## Prove with a real Jaeger that a request is one trace, and that a dead collector costs nothing; 2 minutes
	@$(MAKE) --no-print-directory servers
	@scripts/servers/jaeger/build
	@.venv/bin/python -m tests.proofs.trace

properties: setup ## Run the property tests with twenty times the examples of make test; 10 minutes
	@.venv/bin/pytest tests/unit tests/contract -m hypothesis --hypothesis-profile thorough -n 2 --timeout 3600 -o faulthandler_timeout=0

schemathesis: setup ## Hold both data services to their OpenAPI documents with far more requests than the tests send
	@$(MAKE) --no-print-directory servers
	@HYBRIDKIT_SCHEMATHESIS_EXAMPLES=200 .venv/bin/pytest tests/integration/test_conformance_*.py -k documented --timeout 3600 -o faulthandler_timeout=0
