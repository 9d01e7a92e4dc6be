#!/bin/sh
# Makes .venv beside pyproject.toml with the packages that constraints.txt pins; quick when that is done already.
# Called by make. PYTHON names the interpreter to use; without it the first fitting one in PATH is taken.
set -eu

pip_release=26.3
# Ships the photo of six people that the demo uses; its own dependencies would bring a second OpenCV.
insightface_release=2.1

fail() {
    echo "$1" >&2
    exit 1
}

CDPATH='' cd -- "$(dirname -- "$0")/.."
root=$(pwd -P)
venv_python=.venv/bin/python
stamp=.venv/attendansee-stamp
log=.venv/install.log

# Settings meant for the caller's other projects must not reach this one; how packages are reached is kept.
unset PYTHONHOME PYTHONPATH PYTHONOPTIMIZE PYTHONWARNINGS
for name in $(env | sed -n 's/^\(PIP_[A-Z0-9_]*\)=.*/\1/p'); do
    case $name in
    PIP_CONFIG_FILE | PIP_INDEX_URL | PIP_EXTRA_INDEX_URL | PIP_FIND_LINKS | PIP_NO_INDEX) ;;
    PIP_CERT | PIP_CLIENT_CERT | PIP_PROXY | PIP_TRUSTED_HOST | PIP_KEYRING_PROVIDER) ;;
    PIP_DEFAULT_TIMEOUT | PIP_TIMEOUT | PIP_RETRIES | PIP_CACHE_DIR | PIP_NO_CACHE_DIR) ;;
    *) unset "$name" ;;
    esac
done
# Said in the environment, for it outranks a pip.conf that says otherwise.
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Prints the interpreter's version; 3: wrong version, 4: no venv module, 5: no C library that the wheels are built for.
probe='
import sys, sysconfig
print("%d.%d" % sys.version_info[:2])
if not (3, 10) <= sys.version_info[:2] < (3, 14):
    sys.exit(3)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(4)
if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
    sys.exit(5)
'

# Sets python and version to the first candidate that fits, else complaint to what keeps the best one from fitting.
find_python() {
    python='' version='' complaint='' unfit=''
    for candidate in "$@"; do
        status=0
        version=$("$candidate" -I -c "$probe" 2>/dev/null) || status=$?
        case $status in
        0)
            python=$candidate
            return
            ;;
        3)
            unfit=${unfit:-"Python 3.10 to 3.13 is needed and '$candidate' is Python $version: install one of them (Debian and Ubuntu: apt-get install python3.11 python3.11-venv) or name one with PYTHON=/path/to/python3."}
            ;;
        4)
            complaint=${complaint:-"Python $version ('$candidate') lacks its venv module: install it (Debian and Ubuntu: apt-get install python$version-venv)."}
            ;;
        5)
            complaint=${complaint:-"Python $version ('$candidate') is built for the C library musl, for which TensorFlow has no package: use a system with glibc, such as Debian or Ubuntu."}
            ;;
        esac
    done
    fail "${complaint:-${unfit:-"No Python was found as $*: install Python 3.11 (Debian and Ubuntu: apt-get install python3 python3-venv) or name one with PYTHON=/path/to/python3."}}"
}

# Two makes at once in a fresh clone: the second waits here for the first.
if command -v flock >/dev/null 2>&1; then
    exec 9<pyproject.toml
    flock 9
fi

pins=$(cat pyproject.toml constraints.txt tools/bootstrap.sh | cksum)
stamped_place='' stamped_pins=''
if [ -f "$stamp" ]; then
    { IFS= read -r stamped_place && IFS= read -r stamped_pins; } <"$stamp" || true
fi
made_with=$("$venv_python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || made_with=none
python='' version=$made_with
if [ -n "${PYTHON:-}" ]; then
    find_python "$PYTHON"
fi

# An interrupted install leaves no stamp; a moved clone, whose scripts name the old place, leaves one of another place.
if [ "$made_with" = none ] || [ "$stamped_place" != "$root with Python $version" ]; then
    if [ -z "$python" ]; then
        find_python python3.11 python3.12 python3.13 python3.10 python3
    fi
    [ -w . ] || fail "The folder $root cannot be written to: clone the repository to a folder of your own."
    echo "Making .venv with Python $version: about 170 packages and 3.5 GB on the disk, a few minutes. Progress: $log"
    rm -rf .venv
    "$python" -m venv .venv || fail "Python $version ('$python') could not make .venv; the reason is above."
elif [ "$stamped_pins" = "$pins" ]; then
    exit 0
else
    echo "Renewing .venv, for the pinned packages have changed. Progress: $log"
fi

rm -f "$stamp"
install() {
    "$venv_python" -I -m pip install --no-compile --no-deps --no-build-isolation "$@" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "Installing packages failed as the end of $log above says: with a package registry in reach, run make again."
    }
}
# constraints.txt is complete, so nothing is left for pip to resolve, which took it minutes.
install --constraint constraints.txt "pip==$pip_release" setuptools wheel
install --requirement constraints.txt "insightface==$insightface_release"
install --editable .
# On all cores, which pip does not. A few packages ship templates that are no Python: those are left as they are.
"$venv_python" -I -m compileall -qq -j 0 .venv/lib pipelines || true
printf '%s\n%s\n' "$root with Python $version" "$pins" >"$stamp"
