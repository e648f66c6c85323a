# The service delugefs_mount against a frontend whose mount is a line in a file.
# shellcheck shell=sh disable=SC2154
host mounts
films="${H}/mnt/films" photos="${H}/mnt/photos" d1="${H}/mnt/d1" d2="${H}/mnt/d2"
conf 'delugefs_disks="d1 d2"' "delugefs_d1_root=${d1}" "delugefs_d2_root=${d2}" 'delugefs_cluster=home'
conf 'delugefs_mounts="films photos"' "delugefs_mount_films_dir=${films}/" "delugefs_mount_photos_dir=${photos}"
conf 'delugefs_mount_photos_disk=d2' 'delugefs_mount_films_flags="--cache-entries 5"'
there() { awk -v dir="$1" '$2 == dir { n++ } END { exit n != 1 }' "${STUB_DIR}/mtab"; }

check "configtest: the disk is not there" fails delugefs_mount configtest
check "and says so" said 'has no disk.toml'
delugefs create d1 d2
check "configtest" delugefs_mount configtest
conf 'delugefs_mount_start_timeout=1'
check "start without a worker says so" fails delugefs_mount start films
check "in words" said 'is not mounted after 1 s'
check "it is tried again" grep -q 'delugefs_mount_films: delugefs-fusefront: no diskworker answers' "${STUB_DIR}/syslog"
check "status: not mounted" fails delugefs_mount status films
check "and says so" said 'has not mounted'
conf 'delugefs_mount_start_timeout=10'
delugefs start
tried_again() { delugefs_mount status films; }
check "when the worker comes, it mounts" until_true tried_again
check "stop" delugefs_mount stop films
check "start of all" delugefs_mount start
check "both are mounted" there "${photos}"
check "status" delugefs_mount status
check "a line for each" lines 2
check "with the place" said "running as pid $(pid mount_films), mounted on ${films}\\."
id=$(sed -n 's/^disk_id = "\(........\).*/\1/p' "${d1}/disk.toml")
arguments="--worker ${H}/var/run/delugefs/${id}.sock --fallback ${H}/var/run/delugefs --mount ${films} --user ${user} --name home --cache-entries 5"
check "the frontend got its arguments" grep -q -x -- "${arguments}" "${films}.args"
if [ ! -c /dev/fuse ]; then
	check "the module is loaded" grep -q '^fusefs$' "${STUB_DIR}/kld"
fi
one=$(pid mount_films) two=$(pid mount_photos)
check "a second start is refused" fails delugefs_mount start films
check "and changes nothing" [ "$(pid mount_films)" = "${one}" ]

: >"${STUB_DIR}/calls"
check "stop of one" delugefs_mount stop films
check "unmounts it without force" grep -q -x "umount ${films}" "${STUB_DIR}/calls"
check "it is gone" fails there "${films}"
check "the frontend has handed everything over" [ -e "${films}.clean" ]
check "with its log" [ ! -e "${films}.broken-pipe" ]
check "the other goes on" runs "${two}"
check "stop again fails" fails delugefs_mount stop films
check "start" delugefs_mount start films
: >"${films}.busy"
check "stop of a mount in use" delugefs_mount stop films
check "says who uses it" said 'is in use (.fstat -f'
check "and forces it" said 'by force'
check "it is gone" fails there "${films}"
check "nothing is lost" [ -e "${films}.clean" ]
rm "${films}.busy"
check "start" delugefs_mount start films
: >"${films}.stubborn"
conf 'delugefs_mount_stop_timeout=1'
check "a frontend that does not end is killed" fails delugefs_mount stop films
check "and that is said" said 'is killed'
check "the mount is gone" fails there "${films}"
check "and the process" fails runs "$(pid mount_films)"
rm "${films}.stubborn"
conf 'delugefs_mount_stop_timeout=10'

check "start" delugefs_mount start films
one=$(pid mount_films)
kill -KILL "${one}"
again() { [ "$(pid mount_films)" != "${one}" ] && delugefs_mount status films; }
check "a dead frontend is replaced" until_true again
check "there is one mount" there "${films}"
one=$(pid mount_films)
kill -KILL "$(daemon_pid mount_films)"
check "a frontend without its daemon(8) shows" fails delugefs_mount status films
check "it is not started twice" fails delugefs_mount start films
check "and says why" said "is mounted already, by process ${one}"
kill -KILL "${one}"
dead() { fails delugefs_mount status films && said 'left a dead mount'; }
check "a dead mount shows" until_true dead
check "start replaces it" delugefs_mount start films
check "and says so" said 'is dead and gets replaced'
check "there is one mount" there "${films}"
kill -KILL "$(daemon_pid mount_films)"
kill -KILL "$(pid mount_films)"
: >"${STUB_DIR}/calls"
check "stop removes a dead mount" until_true delugefs_mount stop films
check "by force" grep -q -x "umount -f ${films}" "${STUB_DIR}/calls"
check "it is gone" fails there "${films}"

# Somebody else's: the path of the program as it is started by another one.
"${STUB_DIR}/daemon" -p "${H}/var/run/other.pid" "${H}/bin/delugefs-fusefront" --worker \
	"${H}/var/run/delugefs/${id}.sock" --mount "${films}" --user x
check "a mount of another one" until_true there "${films}"
check "is not mounted over" fails delugefs_mount start films
check "and not stopped" fails delugefs_mount stop films
check "but explained" said 'which this service has not started'
check "it is there" there "${films}"
kill "$(cat "${H}/var/run/other.pid")"
check "it ends" until_true fails there "${films}"

check "restart" delugefs_mount restart films
check "a worker's restart leaves the mounts alone" delugefs restart d1
check "they are there" delugefs_mount status
boot() { dash -c 'script=$1; (set "$2"; . "$script")' /etc/rc "${H}/delugefs_mount" "$1" >"${H}/said" 2>&1; }
check "stop at shutdown" boot faststop
check "nothing is mounted" [ ! -s "${STUB_DIR}/mtab" ]
check "start at boot" boot faststart
check "all are mounted" delugefs_mount status
check "stop of all" delugefs_mount stop
check "and of the disks" delugefs stop
