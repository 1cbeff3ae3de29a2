#!/usr/bin/env bash
# For install.sh --deploy-key: a login over ssh that can hand in orders of `rdedge deploy` and do nothing else.
# Whoever reads it in brings act, if_booted, fail, put, say, and ACCOUNT, HERE, LOG, TOP, deploy_key, dry_run.

SSHD_FILE=/etc/ssh/sshd_config.d/60-rdedge-deploy.conf
# As FILES of install.sh.
DEPLOY_FILES=(
    "board/restart_line                 $TOP/restart_line                              755"
    "board/rdedge-deploy.sudoers        /etc/sudoers.d/rdedge-deploy                   440"
    "board/60-rdedge-deploy.conf        $SSHD_FILE   644"
)
DEPLOY_KEYS=/etc/ssh/rdedge_deploy_keys
dry_run=0 deploy_key=''

choose_deploy_key() { # before anything is done
    if [ -z "$deploy_key" ]; then
        return
    fi
    if grep -q 'PRIVATE KEY' "$deploy_key" || ! ssh-keygen -l -f "$deploy_key" >/dev/null 2>&1; then
        fail "$deploy_key holds no public keys of ssh" "give a .pub file; the private key stays where bundles are exported"
    fi
    local program
    for program in sshd visudo; do
        command -v "$program" >/dev/null || fail "$program is not installed" "sudo apt-get install openssh-server sudo"
    done
}

allow_deploys() {
    if [ -z "$deploy_key" ] && [ ! -e "$DEPLOY_KEYS" ]; then
        return
    fi
    say "step 6: deploys over ssh, as $ACCOUNT, with the keys of ${deploy_key:-before}"
    local source target mode
    act visudo -cq -f "$HERE/board/rdedge-deploy.sudoers"
    while read -r source target mode; do
        put "$HERE/$source" "$target" "$mode"
    done < <(printf '%s\n' "${DEPLOY_FILES[@]}")
    check_sshd
    if_booted systemctl try-reload-or-restart ssh.service # only then keys, and the shell by which sshd runs the command
    if [ -n "$deploy_key" ]; then
        put "$deploy_key" "$DEPLOY_KEYS" 644
    fi
    act usermod --shell /bin/sh --password '*' "$ACCOUNT"
}

check_sshd() { # that it takes the file, and that nothing before it in its configuration says otherwise
    if [ "$dry_run" = 1 ]; then
        return
    fi
    local says
    mkdir -p /run/sshd
    says=$(sshd -T -C "user=$ACCOUNT,host=localhost,addr=127.0.0.1" 2>>"$LOG") || true
    if ! grep -qx "forcecommand $TOP/venv/bin/rdedge receive --restricted" <<<"$says" ||
        ! grep -qx "authorizedkeysfile $DEPLOY_KEYS" <<<"$says"; then
        rm -f "$SSHD_FILE"
        fail "sshd does not keep the user $ACCOUNT to deploys" \
            "see the end of $LOG; /etc/ssh/sshd_config must begin with Include /etc/ssh/sshd_config.d/*.conf"
    fi
}

forbid_deploys() {
    local source target mode had_login=0
    if [ -e "$SSHD_FILE" ]; then
        had_login=1
        if getent passwd "$ACCOUNT" >/dev/null; then
            act usermod --shell /usr/sbin/nologin --lock "$ACCOUNT"
        fi
    fi
    act rm -f "$DEPLOY_KEYS" "$DEPLOY_KEYS.rdedge-new"
    while read -r source target mode; do
        act rm -f "$target" "$target.rdedge-new"
    done < <(printf '%s\n' "${DEPLOY_FILES[@]}")
    if [ "$had_login" = 1 ]; then
        if_booted systemctl try-reload-or-restart ssh.service
    fi
}
