# The service delugefs against a worker and a supervisor that only start and stop.
# shellcheck shell=sh disable=SC2154
host disks
d1="${H}/mnt/disk 1/.bigstoredb" d2="${H}/mnt/d2" d3="${H}/mnt/d3"
mkdir "${H}/mnt/disk 1"
conf 'delugefs_disks="d1 d2"' "delugefs_d1_root='${d1}'" "delugefs_d2_root=${d2}"
conf 'delugefs_d1_reserve_bytes=1000' 'delugefs_d1_flags="--retention-s 7"' 'delugefs_env="RUST_LOG=debug"'

check "configtest: a disk that is not there" fails delugefs configtest
check "configtest says so" said 'is the disk mounted'
check "create needs a name" fails delugefs create
check "create needs a cluster" fails delugefs create d1
check "create says so" said 'set delugefs_cluster'
conf 'delugefs_cluster=home'
check "create makes the first disk" delugefs create d1
check "create says where" said 'is now the disk [0-9a-f]* of the cluster home, on the file system of /'
check "create again is refused" fails delugefs create d1
check "create makes a further disk" delugefs create d2
check "it is of the same cluster" grep -q 'cluster_id = "00000000000000000000000000000001"' "${d2}/disk.toml"
sed 's/delugefs_cluster=home//' "${RC_CONF}" >"${RC_CONF}.new" && mv "${RC_CONF}.new" "${RC_CONF}"
check "configtest: all is well" delugefs configtest
check "a line for each" lines 3

check "start" delugefs start
check "all are started" said 'Starting delugefs_d2'
check "status" delugefs status
check "status has one line for each" lines 3
check "status names pid and folder" said "delugefs_d1 is running as pid $(pid d1) (${d1})"
check "the worker got its arguments" grep -q -- "--root ${d1} --cluster home --run-dir ${H}/var/run/delugefs \
--reserve-bytes 1000 --retention-s 7" "${d1}/args"
check "it runs as the service's user" [ "$(cat "${d1}/ran-as")" = "${user}" ]
check "the supervisor got its arguments" grep -q -- "--run-dir ${H}/var/run/delugefs --state-dir ${H}/var/db/delugefs" \
	"${H}/var/run/delugefs/supervisor.args"
check "the log is in syslog, with a tag for each" grep -q '^delugefs_d1: ready' "${STUB_DIR}/syslog"
check "the environment is passed on" grep -q -z RUST_LOG=debug "/proc/$(pid d1)/environ"
one=$(pid d1) two=$(pid d2) watcher=$(pid supervisor)
check "a second start is refused" fails delugefs start
check "and says so" said "delugefs_d1 already running"
check "and changes nothing" [ "$(pid d1),$(pid d2)" = "${one},${two}" ]
check "faststart at boot is refused by daemon(8)" fails delugefs faststart d1
check "and changes nothing either" [ "$(pid d1)" = "${one}" ]

check "stop of one disk" delugefs stop d2
check "it has ended in order" [ -e "${d2}/clean" ]
check "with its log" [ ! -e "${d2}/broken-pipe" ]
check "the others go on" runs "${one}"
check "status fails" fails delugefs status
check "and says which" said 'delugefs_d2 is not running'
check "stop again fails" fails delugefs stop d2
check "faststop again does not" delugefs faststop d2
check "start of one disk" delugefs start d2
check "the other is the one it was" [ "$(pid d1)" = "${one}" ]
two=$(pid d2)

check "a disk that is not listed" fails delugefs start d3
check "and what to type" said "sysrc delugefs_disks+=\" d3\" delugefs_d3_root=FOLDER"
conf 'delugefs_disks="${delugefs_disks} d3"' "delugefs_d3_root=${d3}"
check "create makes it" delugefs create d3
check "start of the new disk" delugefs start d3
check "has started that one" grep -q "^${user}\$" "${d3}/ran-as"
check "and no other" [ "$(pid d1),$(pid d2),$(pid supervisor)" = "${one},${two},${watcher}" ]
check "restart of one disk" delugefs restart d1
check "is a new worker" [ "$(pid d1)" != "${one}" ]
check "and no other" [ "$(pid d2),$(pid supervisor)" = "${two},${watcher}" ]

one=$(pid d1)
kill -KILL "${one}"
again() { [ -n "$(pid d1)" ] && [ "$(pid d1)" != "${one}" ] && delugefs status d1; }
check "a worker that dies is started again" until_true again
: >"${d1}/fails"
kill -KILL "$(pid d1)"
waits() { fails delugefs status d1 && said 'is started again soon'; }
check "one that always fails is seen in status" until_true waits
check "it can be stopped while nothing runs" delugefs stop d1
conf 'delugefs_start_timeout=1'
check "start says when a worker does not come up" fails delugefs start d1
check "and where to look" said 'does not serve after 1 s'
delugefs stop d1
conf 'delugefs_start_timeout=10'
rm "${d1}/fails"

mv "${d1}" "${d1}.away"
check "start without the disk fails" fails delugefs start d1
check "and says so" said 'is the disk mounted'
delugefs stop d3
check "start of all does what it can" fails delugefs start
check "the other disks run" delugefs status d2 d3
mv "${d1}.away" "${d1}"
check "when it is back, start starts it" delugefs start d1

: >"${d3}/stubborn"
conf 'delugefs_stop_timeout=1'
check "a worker that does not end is killed" delugefs stop d3
check "and that is said" said 'is killed'
rm "${d3}/stubborn"
conf 'delugefs_stop_timeout=10'

one=$(pid d1)
kill -KILL "$(daemon_pid d1)"
check "a worker without its daemon(8) shows" fails delugefs status d1
check "and how" said "running as pid ${one}, but without its daemon"
check "it is not started twice" fails delugefs start d1
check "it can be stopped" delugefs stop d1
check "and is gone" fails runs "${one}"
rm -f "${d1}/broken-pipe" # its log was read by nobody
check "and started" delugefs start d1

check "stop of all" delugefs stop
gone() { ! runs "${two}" && ! runs "${watcher}" && [ -z "$(ls "${H}/var/run/"*.pid 2>/dev/null)" ]; }
check "nothing is left" until_true gone
check "all have ended in order" [ -e "${d1}/clean" ]
: >"${d1}/slow"
STUB_DAEMON=waits
export STUB_DAEMON
check "the same with a daemon(8) that waits: start" delugefs start d1
check "stop" delugefs stop d1
check "in order" [ -e "${d1}/clean" ]
check "with its log" [ ! -e "${d1}/broken-pipe" ]
unset STUB_DAEMON
check "a slow one gets its time" delugefs start d1
delugefs stop d1
check "and ends in order" [ -e "${d1}/clean" ]
check "with its log" [ ! -e "${d1}/broken-pipe" ]
rm "${d1}/slow"
