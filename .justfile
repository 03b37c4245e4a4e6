# Short names for the scripts of infra/ (https://just.systems); nothing here that the scripts cannot do alone.

# what there is
default:
    @just --list

# the environment .venv, and git's pre-commit hooks
setup:
    bash infra/setup.sh && .venv/bin/pre-commit install

# lint and format what can be mended by itself
fix:
    bash infra/setup.sh && .venv/bin/ruff check --fix . && .venv/bin/ruff format .

# lint, format, types
check:
    bash infra/check.sh

# the tests, or some of them: just test tests/storage -k codec
test *arguments:
    bash infra/test.sh {{arguments}}

# what continuous integration runs
ci:
    bash .ci/run

# raw rooms to two exported models
demo folder="outputs/demo":
    bash infra/demo.sh {{folder}}

# one benchmark by name: just bench splat --threads 1
bench name *arguments:
    bash infra/setup.sh && .venv/bin/python tests/bench/bench_{{name}}.py {{arguments}}
