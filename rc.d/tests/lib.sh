# Sourced by every scenario: a host of its own in $T/NAME, checks, and waiting for conditions.
# shellcheck shell=sh disable=SC2154

# Make $H, a host named $1: the scripts with their paths moved below it, stubs first in PATH, an empty rc.conf.
host()
{
	H="${T}/$1"
	mkdir -p "${H}/stub" "${H}/bin" "${H}/var/run" "${H}/var/log" "${H}/var/db" "${H}/mnt"
	cp "${here}"/stub/* "${H}/stub"
	cp "${here}"/fake/* "${H}/bin"
	for script in delugefs delugefs_mount; do
		sed -e "s|/etc/rc\\.subr|${H}/stub/rc.subr|" -e "s|/usr/sbin/daemon|${H}/stub/daemon|" \
			-e "s|/usr/local/bin|${H}/bin|" -e "s|/usr/local/etc|${H}|" -e "s|/var/|${H}/var/|" \
			"${here}/../${script}" >"${H}/${script}"
	done
	export STUB_DIR="${H}/stub" RC_CONF="${H}/rc.conf" PATH="${H}/stub:${PATH}"
	: >"${STUB_DIR}/mtab"
	: >"${STUB_DIR}/syslog"
	: >"${STUB_DIR}/calls"
	chmod 666 "${STUB_DIR}/syslog"
	# As root, the service's user is another one; else it can only be the one who runs the tests.
	user=$(id -un)
	if [ "${user}" = root ]; then
		user=nobody
	fi
	: >"${RC_CONF}"
	conf 'delugefs_enable=YES' 'delugefs_mount_enable=YES' "delugefs_user=${user}" 'delugefs_restart_delay=1' \
		'delugefs_start_timeout=10' 'delugefs_stop_timeout=10' 'delugefs_mount_start_timeout=10' \
		'delugefs_mount_busy_timeout=1' 'delugefs_mount_stop_timeout=10'
}

# Add these lines to rc.conf.
conf()
{
	printf '%s\n' "$@" >>"${RC_CONF}"
}

# The service, with /bin/sh being dash. What it says is in $said too.
delugefs()
{
	dash "${H}/delugefs" "$@" >"${H}/said" 2>&1
}
delugefs_mount()
{
	dash "${H}/delugefs_mount" "$@" >"${H}/said" 2>&1
}
fails()
{
	! "$@"
}
said()
{
	grep -q -- "$1" "${H}/said"
}
lines()
{
	[ "$(wc -l <"${H}/said")" -eq "$1" ]
}

# $1: what is to be true; then a command that says whether it is.
check()
{
	what=$1
	shift
	if "$@"; then
		echo "ok    ${what}"
	else
		echo "FAIL  ${what}: $*"
		sed 's/^/        | /' "${H}/said" 2>/dev/null
	fi
}

# Wait for a condition, for ten seconds.
until_true()
{
	tries=100
	until "$@"; do
		tries=$((tries - 1))
		[ "${tries}" -gt 0 ] || return 1
		sleep 0.1
	done
}

pid()
{
	cat "${H}/var/run/delugefs_$1.pid" 2>/dev/null
}
daemon_pid()
{
	cat "${H}/var/run/delugefs_$1.daemon.pid" 2>/dev/null
}
runs()
{
	[ -n "${1}" ] && kill -0 "$1" 2>/dev/null
}

# End what a scenario has left running, when it failed half way: processes whose command line names our own $T.
clean_up()
{
	for left in $(pgrep -f -- "${T}/"); do
		if [ "${left}" != "$$" ]; then
			kill -KILL "${left}" 2>/dev/null
		fi
	done
}
