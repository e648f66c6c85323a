# The part of real.sh that mounts; $H is its host, and this runs in a mount namespace of its own.
# shellcheck shell=sh disable=SC2154
all="${H}/mnt/all"
check "mount: start" delugefs_mount start
check "mount: status" delugefs_mount status
writes() { echo hello >"${all}/file" && [ "$(cat "${all}/file")" = hello ]; }
check "mount: a file" writes
serves_as() { [ "$(stat -c %U "/proc/$(pgrep -P "$(pid mount_all)")")" = "$1" ]; }
check "mount: the serving process is not root" serves_as "$(sed -n 's/^delugefs_user=//p' "${RC_CONF}")"
check "mount: a second start is refused" fails delugefs_mount start
check "mount: lives through a restart of its disk" delugefs restart d1
check "mount: with its file" [ "$(cat "${all}/file")" = hello ]
check "mount: stop" delugefs_mount stop
check "mount: the directory is bare" [ -z "$(ls "${all}")" ]
check "mount: start" delugefs_mount start
check "mount: the file is there" [ "$(cat "${all}/file")" = hello ]

# In use: the descriptor 8 of this shell.
exec 8<"${all}/file"
check "mount: stop while in use" delugefs_mount stop
check "mount: was forced" said 'by force'
exec 8<&-
check "mount: the directory is bare" [ -z "$(ls "${all}")" ]

check "mount: start" delugefs_mount start
one=$(pid mount_all)
kill -KILL "$(pgrep -P "${one}")"
again()
{
	[ -n "$(pid mount_all)" ] && [ "$(pid mount_all)" != "${one}" ] && [ "$(cat "${all}/file" 2>/dev/null)" = hello ]
}
check "mount: a dead server is replaced" until_true again
serving=$(pgrep -P "$(pid mount_all)")
kill -KILL "$(daemon_pid mount_all)" "$(pid mount_all)" "${serving}"
dead() { fails delugefs_mount status && said 'dead mount'; }
check "mount: a dead mount shows" until_true dead
check "mount: start replaces it" delugefs_mount start
check "mount: the file is there" [ "$(cat "${all}/file")" = hello ]
serving=$(pgrep -P "$(pid mount_all)")
kill -KILL "$(daemon_pid mount_all)" "$(pid mount_all)" "${serving}"
check "mount: dead again" until_true dead
check "mount: stop clears it away" delugefs_mount stop
check "mount: the directory is bare" [ -z "$(ls "${all}")" ]
