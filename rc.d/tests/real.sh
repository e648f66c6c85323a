# The scripts with the real programs of $DELUGEFS_BIN. Disks always; a mount when root may mount, in a mount namespace
# of its own.
# shellcheck shell=sh disable=SC2154
host real
DELUGEFS_BIN=$(cd "${DELUGEFS_BIN}" && pwd)
# Of a service's user, who may not be able to reach where they were built.
for program in delugefs delugefs-diskworker delugefs-fusefront delugefs-supervisor; do
	ln -f "${DELUGEFS_BIN}/${program}" "${H}/bin/${program}" 2>/dev/null ||
		cp "${DELUGEFS_BIN}/${program}" "${H}/bin/${program}"
done
chmod 755 "${H}/mnt"

# Every option has its place in the manual, and no other.
for program in delugefs-diskworker.8 delugefs-fusefront.8 delugefs-supervisor.8; do
	has=$("${H}/bin/${program%.8}" --help | grep -o -E '^ +(-[a-zA-Z], )?--[a-z-]+' | grep -o -E -- '--.*' | sort -u)
	says=$(sed 's/\\-/-/g' "${here}/../man/${program}" | grep -o -E 'Fl -[a-z-]+' | sed 's/^Fl /-/' | sort -u)
	for option in ${has}; do
		case ${option} in
		--help | --version) continue ;;
		esac
		case " $(echo "${says}" | tr '\n' ' ') " in
		*" ${option} "*) echo "ok    ${program} explains ${option}" ;;
		*) echo "FAIL  ${program} does not explain ${option}" ;;
		esac
	done
	for option in ${says}; do
		case ${option} in
		--help | --version) continue ;;
		esac
		case " $(echo "${has}" | tr '\n' ' ') " in
		*" ${option} "*) ;;
		*) echo "FAIL  ${program} explains ${option}, which the program does not have" ;;
		esac
	done
done
for command in $("${H}/bin/delugefs" --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on { print $1 }'); do
	[ "${command}" = help ] || check "delugefs.1 explains ${command}" grep -q -E "^\\.It Cm ${command}( |\$)" \
		"${here}/../man/delugefs.1"
done

d1="${H}/mnt/d1" d2="${H}/mnt/d2"
chmod 1777 "${H}/mnt"
conf 'delugefs_cluster=home' 'delugefs_disks="d1 d2"' "delugefs_d1_root=${d1}" "delugefs_d2_root=${d2}"
conf 'delugefs_supervisor_flags=--no-mdns' 'delugefs_d1_retention_s=60' 'delugefs_d1_reserve_bytes=1000000'
cp "${here}/../delugefs.toml.sample" "${H}/delugefs.toml"
check "create makes two disks" delugefs create d1 d2
one_cluster() { [ "$(grep '^cluster_id' "${d1}/disk.toml")" = "$(grep '^cluster_id' "${d2}/disk.toml")" ]; }
check "of one cluster" one_cluster
check "start" delugefs start
check "status" delugefs status
both() { delugefs ctl disks && [ "$(grep -c 'state .* up, .*started by hand' "${H}/said")" -eq 2 ]; }
check "the supervisor knows both workers" until_true both
check "no problems" delugefs ctl status -x
check "scrub" delugefs ctl scrub
one=$(pid d1)
kill -KILL "${one}"
again() { [ -n "$(pid d1)" ] && [ "$(pid d1)" != "${one}" ] && delugefs status d1 && both; }
check "a worker that dies is started again, and registers" until_true again
check "stop of one disk" delugefs stop d2
check "in order" grep -q 'delugefs_d2: .*stopped cleanly' "${STUB_DIR}/syslog"
check "the other goes on" delugefs status d1
check "restart of the supervisor" delugefs restart supervisor
known() { delugefs ctl disks && grep -q 'started by hand' "${H}/said"; }
check "finds the worker" until_true known
check "start of the other" delugefs start d2

may_mount() { [ "$(id -u)" -eq 0 ] && [ -c /dev/fuse ] && unshare -m true 2>/dev/null && (: <>/dev/fuse) 2>/dev/null; }
if may_mount; then
	: >"${STUB_DIR}/real"
	conf 'delugefs_mounts=all' "delugefs_mount_all_dir=${H}/mnt/all"
	# All in one namespace, which takes the mounts with it when it ends.
	unshare -m --propagation private sh -c '. "$1/lib.sh"; H=$2; . "$1/realmount.sh"' - "${here}" "${H}"
fi

check "stop of all" delugefs stop
check "nothing is left" [ -z "$(ls "${H}/var/run/"*_d?.*pid "${H}/var/run/"*supervisor.*pid 2>/dev/null)" ]
check "d1 has ended in order" grep -q 'delugefs_d1: .*stopped cleanly' "${STUB_DIR}/syslog"
