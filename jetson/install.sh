#!/usr/bin/env bash
# From a flashed Jetson to `rdedge` and its services: sudo jetson/install.sh   (see usage below and README.md)
# Can be run again and be interrupted at any time: what is done is kept, what is half done is done anew.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_CONSTRAINT PIP_TARGET PIP_USER
umask 022

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=/opt/rdedge                       # all of it is ours
LINE_FILES=/etc/rdedge                # the user's line files
DATA=/var/lib/rdedge                  # the user's bundles and results
LOG=/var/log/rdedge-install.log
UNITS=/usr/local/lib/systemd/system   # so that `systemctl edit` writes to /etc, which is the user's
ACCOUNT=rdedge
ACCOUNT_GROUPS=(video render gpio i2c dialout plugdev)
OLDEST_TENSORRT=8.6

# shellcheck source=venv.sh source-path=SCRIPTDIR
source "$HERE/venv.sh"
# shellcheck source=deploy_login.sh source-path=SCRIPTDIR
source "$HERE/deploy_login.sh"

# What is copied: source below this folder, its place, its mode.
FILES=(
    "systemd/rdedge@.service            $UNITS/rdedge@.service                    644"
    "systemd/rdedge-engine@.service     $UNITS/rdedge-engine@.service             644"
    "systemd/line_engines.py            $TOP/line_engines.py                      644"
    "systemd/journald@rdedge.conf       /etc/systemd/journald@rdedge.conf         644"
    "board/60-rdedge-cameras.rules      /etc/udev/rules.d/60-rdedge-cameras.rules 644"
    "board/60-rdedge-cameras.conf       /etc/sysctl.d/60-rdedge-cameras.conf      644"
    "board/rdedge-usb.conf              /etc/tmpfiles.d/rdedge-usb.conf           644"
    "line.example.toml                  $LINE_FILES/line.toml.example                  644"
)

usage() {
    cat <<'END'
usage: sudo jetson/install.sh [--dry-run] [--wheels DIR] [--deploy-key FILE]
       sudo jetson/install.sh --uninstall [--purge] [--dry-run]

  --dry-run     say what would be done, change nothing; needs no root
  --wheels DIR  take Python packages from this folder alone: for a board without internet
  --deploy-key FILE
                let the holders of these keys (FILE has the public ones, a line each) deploy over ssh, as user rdedge,
                and do nothing else; they replace the keys given before
  --uninstall   remove what this script put there; line files, bundles and results stay
  --purge       with --uninstall: these and the user rdedge go too
END
}

# ---- saying and doing ------------------------------------------------------------------------------------------------

say() {
    printf '%s\n' "$*"
    if [ "$dry_run" = 0 ]; then
        printf '%s %s\n' "$(date --utc +%FT%TZ)" "$*" >>"$LOG"
    fi
}

fail() { # fail PROBLEM REMEDY
    printf 'install.sh: error: %s; %s\n' "$1" "$2" >&2
    if [ "$dry_run" = 0 ] && [ -w "$(dirname "$LOG")" ]; then
        printf '%s error: %s; %s\n' "$(date --utc +%FT%TZ)" "$1" "$2" >>"$LOG"
    fi
    exit 2
}

act() { # act COMMAND...: run it, its output into the log; in a dry run, only say so
    if [ "$dry_run" = 1 ]; then
        printf '  would run: %s\n' "$*"
        return
    fi
    printf '+ %s\n' "$*" >>"$LOG"
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n 15 "$LOG" >&2
        fail "this failed: $*" "mend what the lines above say ($LOG has all of it) and run this script again"
    fi
}

if_booted() { # like act, but only where systemd runs: not in a chroot or a container
    if [ -d /run/systemd/system ]; then
        act "$@"
    fi
}

put() { # put SOURCE TARGET MODE: whole or not at all, and only if it is not so already
    if [ "$dry_run" = 0 ] && cmp -s "$1" "$2" && [ "$(stat -c %a "$2")" = "$3" ]; then
        return
    fi
    act mkdir -p "$(dirname "$2")"
    act install -m "$3" "$1" "$2.rdedge-new"
    act mv -fT "$2.rdedge-new" "$2"
}

# ---- the board -------------------------------------------------------------------------------------------------------

# L4T, JetPack, CUDA, Python, chips. TensorRT is whatever dpkg has, from OLDEST_TENSORRT on.
# https://developer.nvidia.com/embedded/jetpack-archive
look_up_jetpack() { # look_up_jetpack L4T
    case $1 in
        36.2.* | 36.3.*)   echo 6.0 12.2 3.10 orin ;;
        36.4.0)            echo 6.1 12.6 3.10 orin ;;
        36.4.[4-9])        echo 6.2.1 12.6 3.10 orin ;;
        36.4.*)            echo 6.2 12.6 3.10 orin ;;
        36.*)              echo 6.2.2 12.6 3.10 orin ;;
        38.[0-3].*)        echo 7.0 13.0 3.12 thor ;;
        38.*)              echo 7.1 13.0 3.12 thor ;;
        39.*)              echo 7.2 13.2 3.12 orin,thor ;;
    esac
}

read_l4t() { # "# R36 (release), REVISION: 4.3, GCID: ..." -> 36.4.3
    sed -nE '1s/^# R([0-9]+) \(release\), REVISION: ([0-9]+(\.[0-9]+)?).*/\1.\2/p' /etc/nv_tegra_release
}

chip_of_board() { # from the device tree, which is of NUL-ended words
    local words
    words=$(tr '\0' '\n' 2>/dev/null </sys/firmware/devicetree/base/compatible || true)
    case $words in
        *tegra234*) echo orin ;;
        *tegra264*) echo thor ;;
        *tegra194*) echo xavier ;;
        *tegra210*) echo nano ;;
        *)          echo unknown ;;
    esac
}

version_of() { # version_of PACKAGE: as dpkg has it installed, else nothing
    dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | sed -n '1s/^installed //p' || true
}

read_board() {
    local machine core chips
    machine=$(uname -m)
    if [ ! -e /etc/nv_tegra_release ]; then
        fail "this is no Jetson ($machine, no /etc/nv_tegra_release)" \
            "on another computer: pip install 'rdedge[cpu]', or rdedge[tensorrt] with an NVIDIA GPU"
    fi
    l4t=$(read_l4t)
    case $l4t in
        "")         fail "/etc/nv_tegra_release says no release: $(head -c 80 /etc/nv_tegra_release)" "flash JetPack 6.0 or newer" ;;
        32.*)       fail "L4T $l4t is JetPack 4, with Python 3.6" "no JetPack 6 exists for Nano, TX2 and Xavier: use an Orin or a Thor" ;;
        34.* | 35.*) fail "L4T $l4t is JetPack 5, with Python 3.8 and TensorRT 8.5" "flash JetPack 6 (an Orin; a Xavier has none)" ;;
    esac
    [[ $l4t == *.*.* ]] || l4t=$l4t.0
    read -r jetpack cuda python chips <<<"$(look_up_jetpack "$l4t")" || true
    if [ -z "$jetpack" ]; then
        fail "L4T $l4t is not known to this script" "it knows JetPack 6.0 to 7.2 (L4T 36.2 to 39.x): take a newer rdedge"
    fi
    if [ "$machine" != aarch64 ]; then
        fail "/etc/nv_tegra_release is of L4T $l4t, but this machine is $machine" "run this on the board itself"
    fi
    chip=$(chip_of_board)
    if [[ ,$chips, != *,$chip,* ]]; then
        fail "JetPack $jetpack (L4T $l4t) is for ${chips/,/ and }, but this board's chip is: $chip" \
            "flash the JetPack that is made for it"
    fi
    core=$(version_of nvidia-l4t-core)
    if [ "${core%%-*}" != "$l4t" ] && [ "${core%%-*}.0" != "$l4t" ]; then
        fail "/etc/nv_tegra_release says L4T $l4t, but dpkg has nvidia-l4t-core ${core:-not at all}" \
            "end the update that was begun (sudo apt-get -f install, sudo apt-get dist-upgrade), restart, run this again"
    fi
    say "board: $chip, L4T $l4t, JetPack $jetpack, CUDA $cuda, Python $python"
}

# ---- packages of apt -------------------------------------------------------------------------------------------------

choose_packages() { # -> missing: what apt shall install
    local name wanted dashed=${cuda/./-}
    # JetPack's own OpenCV or Ubuntu's: both have GStreamer. JetPack's is not put over an Ubuntu's that is there.
    opencv=python3-opencv
    if [ -z "$(version_of python3-opencv)" ]; then
        if [ -n "$(version_of libopencv-python)" ] || apt-cache show libopencv-python >/dev/null 2>&1; then
            opencv=libopencv-python
        fi
    fi
    wanted=(
        python3-venv python3-dev python3-numpy "$opencv" g++
        python3-gi gir1.2-gstreamer-1.0 gir1.2-gst-plugins-base-1.0
        gstreamer1.0-plugins-base gstreamer1.0-plugins-good gir1.2-aravis-0.8 v4l-utils
        nvidia-l4t-gstreamer nvidia-l4t-camera python3-libnvinfer
        "cuda-nvcc-$dashed" "cuda-cudart-dev-$dashed" "cuda-driver-dev-$dashed" "cuda-profiler-api-$dashed"
    )
    missing=()
    for name in "${wanted[@]}"; do
        [ -n "$(version_of "$name")" ] || missing+=("$name")
    done
}

install_packages() {
    say "step 1: packages of apt (OpenCV: $opencv)"
    if [ ${#missing[@]} -eq 0 ]; then
        say "  all are there"
    else
        say "  missing: ${missing[*]}"
        remember added-packages "${missing[@]}"
        act dpkg --configure -a # ends what an interrupted run left
        act apt-get -q -o DPkg::Lock::Timeout=600 update
        act apt-get -q -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "${missing[@]}"
    fi
    tensorrt=$(version_of python3-libnvinfer)
    if [ "$dry_run" = 0 ] && is_older "${tensorrt%%-*}" "$OLDEST_TENSORRT"; then
        fail "TensorRT ${tensorrt:-is missing}, expected $OLDEST_TENSORRT or newer" "sudo apt-get install --reinstall python3-libnvinfer"
    fi
    say "  TensorRT: ${tensorrt:-what apt will bring}"
}

remember() { # remember FILE WORDS...: adds what --uninstall will want to know
    if [ "$dry_run" = 1 ]; then
        return
    fi
    local file=$TOP/$1
    shift
    mkdir -p "$TOP"
    { cat "$file" 2>/dev/null || true; printf '%s\n' "$@"; } | sort -u >"$file.new"
    mv -fT "$file.new" "$file"
}

# ---- the virtual environment -----------------------------------------------------------------------------------------

build_wheel() { # -> wheel: of this checkout, or the one in --wheels
    say "step 2: the package"
    if [ -n "$wheels" ]; then
        wheel=$(find "$wheels" -maxdepth 1 -name 'rdedge-*.whl' | sort -V | tail -n 1)
        [ -n "$wheel" ] || fail "no rdedge-*.whl in $wheels" "see README.md: a board without internet"
        say "  $wheel"
        return
    fi
    if [ ! -f "$HERE/../pyproject.toml" ]; then
        fail "$HERE is in no checkout of rdedge" "run it from the checkout, or give --wheels DIR"
    fi
    act python3 -m venv --clear "$TOP/build-venv"
    act "$TOP/build-venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$TOP/build-venv/out" "$HERE/.."
    wheel=$(find "$TOP/build-venv/out" -name 'rdedge-*.whl' 2>/dev/null || true)
}

describe_venv() { # all that makes another venv necessary
    printf '%s\n' "L4T $l4t" "python $python" "CUDA $cuda" "TensorRT $tensorrt" "OpenCV $opencv_version" "numpy $numpy_version" \
        "wheel $(sha256sum <"$wheel")" "installer $(cat "$HERE/install.sh" "$HERE/venv.sh" | sha256sum)"
}

make_venv() {
    say "step 3: virtual environment, made beside the one in use and then switched in"
    if [ "$dry_run" = 1 ]; then
        cat <<END
  would make: $TOP/venvs/NEW with --system-site-packages (TensorRT and OpenCV are the system's)
  would hold: rdedge[$EXTRAS], pycuda built against /usr/local/cuda-$cuda, numpy of the major version OpenCV was built with
  would keep out: pip's OpenCV, torch
  would switch: $TOP/venv -> $TOP/venvs/NEW
END
        return
    fi
    look_at_system_python
    if [ -f "$TOP/venv/made-for" ] && [ "$(cat "$TOP/venv/made-for")" = "$(describe_venv)" ] &&
        check_venv "$TOP/venv" && check_nvidia "$TOP/venv"; then
        say "  $(readlink "$TOP/venv") is right, kept"
        return
    fi
    forget_abandoned
    new=$TOP/venvs/$(date --utc +%Y%m%dT%H%M%SZ)-$$
    mkdir -p "$TOP/venvs"
    fill_venv "$new" "$wheel" "/usr/local/cuda-$cuda"
    if ! check_venv "$new" || ! check_nvidia "$new"; then
        fail "the new virtual environment is not fit for use" "see the end of $LOG; the old one is still in use"
    fi
    describe_venv >"$new/made-for"
    switch_to "$new"
}

switch_to() { # switch_to VENV: in one step; the one before it stays for the lines that still run from it
    local before
    before=$(readlink "$TOP/venv" || true)
    ln -sfn "$1" "$TOP/.venv-new"
    mv -fT "$TOP/.venv-new" "$TOP/venv"
    say "  now in use: $1; lines that run take it at their next start: sudo systemctl restart 'rdedge@*'"
    find "$TOP/venvs" -mindepth 1 -maxdepth 1 ! -path "$1" ! -path "${before:-$1}" -exec rm -rf {} +
}

forget_abandoned() { # of interrupted runs: never finished, never switched in
    local folder
    for folder in "$TOP"/venvs/*; do
        if [ -d "$folder" ] && [ ! -f "$folder/made-for" ]; then
            rm -rf "$folder"
        fi
    done
}

# ---- user, devices, services -----------------------------------------------------------------------------------------

add_account() {
    say "step 4: user $ACCOUNT"
    local group
    for group in "$ACCOUNT" "${ACCOUNT_GROUPS[@]}"; do
        if ! getent group "$group" >/dev/null; then
            remember added-groups "$group"
            act groupadd --system "$group"
        fi
    done
    if ! getent passwd "$ACCOUNT" >/dev/null; then
        act useradd --system --gid "$ACCOUNT" --home-dir "$DATA" --no-create-home --shell /usr/sbin/nologin "$ACCOUNT"
    fi
    act usermod --gid "$ACCOUNT" --append --groups "$(IFS=,; echo "${ACCOUNT_GROUPS[*]}")" "$ACCOUNT"
    act install -d -m 750 -o root -g "$ACCOUNT" "$LINE_FILES" # line files name password files that lie beside them
    act install -d -m 750 -o "$ACCOUNT" -g "$ACCOUNT" "$DATA"
}

copy_files() {
    say "step 5: services, camera rules, command"
    local source target mode
    while read -r source target mode; do
        put "$HERE/$source" "$target" "$mode"
    done < <(printf '%s\n' "${FILES[@]}")
    if [ -e /usr/local/bin/rdedge ] && [ "$(readlink /usr/local/bin/rdedge)" != "$TOP/venv/bin/rdedge" ]; then
        say "  /usr/local/bin/rdedge is not ours and stays; ours is $TOP/venv/bin/rdedge"
    else
        act mkdir -p /usr/local/bin
        act ln -sfn "$TOP/venv/bin/rdedge" /usr/local/bin/rdedge
    fi
    reload
}

reload() {
    if_booted systemctl daemon-reload
    if_booted udevadm control --reload
    if_booted udevadm trigger --subsystem-match=usb --subsystem-match=gpio
    if [ -f /etc/sysctl.d/60-rdedge-cameras.conf ]; then
        if_booted sysctl --quiet --load=/etc/sysctl.d/60-rdedge-cameras.conf
        if_booted systemd-tmpfiles --create rdedge-usb.conf
    fi
}

install_all() {
    read_board
    choose_deploy_key
    choose_packages
    install_packages
    build_wheel
    make_venv
    add_account
    copy_files
    allow_deploys
    act rm -rf "$TOP/build-venv"
    say "done: put a bundle into $DATA and a line file into $LINE_FILES, then: sudo systemctl enable --now rdedge@LINE"
}

# ---- and back --------------------------------------------------------------------------------------------------------

uninstall_all() {
    local source target mode group added=()
    say "removing rdedge"
    if [ -d /run/systemd/system ]; then
        # Instances of templates can be named by a pattern only while they run, so those that are enabled by their links.
        act systemctl stop 'rdedge@*.service' 'rdedge-engine@*.service'
        act find /etc/systemd/system -path '*.wants/rdedge*@*.service' -type l -delete
    fi
    forbid_deploys
    while read -r source target mode; do
        act rm -f "$target" "$target.rdedge-new"
    done < <(printf '%s\n' "${FILES[@]}")
    if [ "$(readlink /usr/local/bin/rdedge || true)" = "$TOP/venv/bin/rdedge" ]; then
        act rm -f /usr/local/bin/rdedge
    fi
    reload
    if [ -s "$TOP/added-packages" ]; then
        # apt knows what else needs them by now: `apt-get autoremove` takes those that nothing does.
        # shellcheck disable=SC2016 # dpkg-query's own variables
        mapfile -t added < <(xargs -a "$TOP/added-packages" dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null |
            sed -n 's/^installed //p')
        if [ ${#added[@]} -gt 0 ]; then
            act apt-mark auto "${added[@]}"
            say "  packages that this script added are marked as not asked for: sudo apt-get autoremove takes them away"
        fi
    fi
    if [ "$purge" = 1 ]; then
        act rm -rf "$LINE_FILES"
        purge_data
        if getent passwd "$ACCOUNT" >/dev/null; then
            act userdel "$ACCOUNT"
        fi
        while read -r group; do
            if [ -z "$(getent group "$group" | cut -d: -f4)" ]; then
                act groupdel "$group"
            fi
        done < <(grep -sxF -f <(getent group | cut -d: -f1) "$TOP/added-groups" || true)
    else
        say "  $LINE_FILES, $DATA and the user $ACCOUNT, whose they are, stay; --purge takes them too"
        act rmdir --ignore-fail-on-non-empty "$LINE_FILES" "$DATA"
    fi
    act rm -rf "$TOP" # last: it holds what a second try needs to know
    say "done: $LOG tells what was done"
}

purge_data() { # a disk of its own may be mounted there, and its mount point cannot be removed
    if mountpoint -q "$DATA"; then
        act find "$DATA" -mindepth 1 -delete
        act chown root:root "$DATA"
        say "  $DATA is a disk of its own: emptied, and still mounted"
    else
        act rm -rf "$DATA"
    fi
}

# ---- main ------------------------------------------------------------------------------------------------------------

dry_run=0 do_uninstall=0 purge=0 wheels='' deploy_key='' pip_sources=()
l4t='' jetpack='' cuda='' python='' chip='' opencv='' tensorrt='' wheel='' new='' missing=()
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run)   dry_run=1 ;;
        --uninstall) do_uninstall=1 ;;
        --purge)     purge=1 ;;
        --wheels)
            [ -d "${2:-}" ] || { usage >&2; exit 2; }
            wheels=$(cd "$2" && pwd)
            pip_sources=(--no-index --find-links "$wheels")
            shift ;;
        --deploy-key)
            [ -s "${2:-}" ] || { usage >&2; exit 2; }
            deploy_key=$2
            shift ;;
        -h | --help) usage; exit 0 ;;
        *)           usage >&2; exit 2 ;;
    esac
    shift
done
if [ "$purge$do_uninstall" = 10 ] || { [ "$do_uninstall" = 1 ] && [ -n "$deploy_key" ]; }; then
    usage >&2
    exit 2
fi
if [ "$dry_run" = 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "install.sh: error: not root; run it with sudo, or look with --dry-run" >&2; exit 2; }
    mkdir -p /run/lock
    exec 9>/run/lock/rdedge-install.lock
    flock -n 9 || { echo "install.sh: error: another one is running; wait for it" >&2; exit 2; }
    trap 'echo "install.sh: interrupted; run it again to go on" >&2; exit 130' INT TERM HUP
    say "install.sh begins ($(date --utc +%F))"
fi
if [ "$do_uninstall" = 1 ]; then
    uninstall_all
else
    install_all
fi
