# The service delugefs: at boot, what is enabled, settings that are wrong, service jails.
# shellcheck shell=sh disable=SC2154,SC2317
host settings
d1="${H}/mnt/d1" d2="${H}/mnt/d2" d3="${H}/mnt/d3"
conf 'delugefs_cluster=home' 'delugefs_disks="d1 d2 d3"'
conf "delugefs_d1_root=${d1}" "delugefs_d2_root=${d2}" "delugefs_d3_root=${d3}"
check "create of several disks" delugefs create d1 d2 d3
gone() { [ -z "$(ls "${H}/var/run/"*.pid 2>/dev/null)" ]; }

# As /etc/rc and rc.shutdown do it: sourced, with the argument in place of their own.
boot()
{
	dash -c 'autoboot=$3; script=$1; (set "$2"; . "$script")' /etc/rc "${H}/delugefs" "$1" "$2" >"${H}/said" 2>&1
}
check "start at boot" boot faststart yes
check "all run" delugefs status
check "stop at shutdown" boot faststop ""
check "nothing is left" until_true gone

conf 'delugefs_d3_enable=NO'
check "a disk that is not enabled is not started" delugefs start
check "status does not count it" delugefs status
check "but shows it" said 'delugefs_d3 is not enabled'
check "unless it is named" fails delugefs status d3
check "onestart starts it" delugefs onestart d3
check "onestop stops it" delugefs onestop d3
delugefs stop
conf 'delugefs_enable=NO'
check "a service that is not enabled says so once" delugefs start
check "in one line" lines 1
check "and does not start" fails delugefs status
conf 'delugefs_enable=YES'

check "rcvar" delugefs rcvar
check "shows the variable" said 'delugefs_enable="YES"'
delugefs enable
check "enable sets it" grep -q '^sysrc delugefs_enable=YES' "${STUB_DIR}/calls"
delugefs disable d2
check "disable of one disk" grep -q '^sysrc delugefs_d2_enable=NO' "${STUB_DIR}/calls"
check "no argument shows the usage" fails delugefs
check "with what is there" said 'configtest|create|ctl'
check "an unknown argument is refused" fails delugefs strat

check "ctl" delugefs ctl whereis "it's \$HOME"
check "runs as the service's user" said "as ${user}:"
check "keeps its words" said "^<it's \$HOME>\$"
check "names the run directory" said "^<${H}/var/run/delugefs>\$"
echo trouble >"${STUB_DIR}/problems"
delugefs ctl status -x
check "keeps the exit code" [ $? -eq 20 ]

conf 'delugefs_mounts="m n"' 'delugefs_mount_n_user=root' "delugefs_mount_m_user=$(id -u)"
delugefs start d2
if [ "${user}" = "$(id -un)" ]; then
	check "a mount's user is let in" grep -q -- "--allow-uid $(id -u)" "${d2}/args"
else
	sed "s/delugefs_mount_m_user=0/delugefs_mount_m_user=daemon/" "${RC_CONF}" >"${RC_CONF}.new"
	mv "${RC_CONF}.new" "${RC_CONF}"
	delugefs restart d2
	check "a mount's user is let in" grep -q -- "--allow-uid $(id -u daemon)" "${d2}/args"
fi
delugefs stop d2

cp "${RC_CONF}" "${RC_CONF}.good"
wrong()
{
	cp "${RC_CONF}.good" "${RC_CONF}"
	conf "$2"
	check "configtest: $1" fails delugefs configtest
	check "configtest says so" said "$3"
}
wrong "a disk twice" "delugefs_d2_root=${d1}" 'is the disk d2 too'
wrong "a relative path" 'delugefs_d2_root=mnt/d2' 'must be an absolute path'
wrong "a path with a quote" "delugefs_d2_root=\"/mnt/it's\"" 'must have no quotes'
wrong "no path" 'delugefs_d2_root=' 'delugefs_d2_root is not set'
wrong "another cluster" 'delugefs_cluster=away' 'belongs to the cluster "home"'
sed -i.good 's/^cluster_id = "./&x/' "${d2}/disk.toml"
wrong "another cluster of the same name" '' 'has the same name as that of d1, but is another cluster'
mv "${d2}/disk.toml.good" "${d2}/disk.toml"
wrong "a number that is none" 'delugefs_d2_reserve_bytes=1G' 'is not a number'
wrong "a user that is none" 'delugefs_user=nosuchuser' 'pw useradd nosuchuser'
wrong "no programs" 'delugefs_bin_dir=/nonexistent' 'set delugefs_bin_dir'
wrong "a name that is none" 'delugefs_disks="d1 d-2"' 'cannot be the name of a disk'
wrong "a name of another service" 'delugefs_disks="d1 mount_x"' 'cannot be the name of a disk'
wrong "a long run directory" "delugefs_run_dir=/var/run/$(printf %080d 0)" 'too long'
cp "${RC_CONF}.good" "${RC_CONF}"
printf '[[disk]]\nroot = "%s"\n' "${d2}" >"${H}/delugefs.toml"
wrong "a disk in both files" '' 'keep one of the two'
printf '[[mount]]\ndir = "/x"\n' >"${H}/delugefs.toml"
wrong "a mount of an unprivileged supervisor" '' 'the supervisor does not run as root'
cp "${here}/../delugefs.toml.sample" "${H}/delugefs.toml"
cp "${RC_CONF}.good" "${RC_CONF}"
check "configtest: the sample is good" delugefs configtest
check "it is handed to the supervisor" delugefs start supervisor
check "by its name" grep -q -- "--config ${H}/delugefs.toml" "${H}/var/run/delugefs/supervisor.args"
delugefs stop

# A service jail: one for the script, made by rc.subr, which removes it at every stop.
conf 'delugefs_svcj=YES' 'JAIL_CMD=jail'
: >"${STUB_DIR}/calls"
delugefs start
called() { grep -q -E "^$1 *\$" "${STUB_DIR}/calls"; }
check "service jail: start makes it" called 'jail -c name=svcj-delugefs exec.start=delugefs start'
delugefs start d2
delugefs stop d2
delugefs status
check "one disk starts in it" called 'service -j svcj-delugefs -E _rc_svcj=jailing delugefs start d2'
check "one disk stops in it" called 'service -j svcj-delugefs -E _rc_svcj=jailing delugefs stop d2'
check "and it stays" fails grep -q '^jail -r' "${STUB_DIR}/calls"
check "status looks into it" called 'service -j svcj-delugefs -E _rc_svcj=jailing delugefs status'
delugefs stop
check "stop of all removes it" grep -q '^jail -r svcj-delugefs' "${STUB_DIR}/calls"
inside() { _rc_svcj=jailing delugefs start d2; }
check "inside, workers are started" inside
inside() { _rc_svcj=jailing delugefs stop d2; }
check "and stopped" inside
check "nothing is left" until_true gone
