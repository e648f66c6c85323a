# What periodic(8) runs, and settings of the service delugefs_mount that are wrong.
# shellcheck shell=sh disable=SC2154
host periodic
films="${H}/mnt/films" photos="${H}/mnt/photos" d1="${H}/mnt/d1" d2="${H}/mnt/d2"
conf 'delugefs_disks="d1 d2"' "delugefs_d1_root=${d1}" "delugefs_d2_root=${d2}" 'delugefs_cluster=home'
conf 'delugefs_mounts="films photos"' "delugefs_mount_films_dir=${films}" "delugefs_mount_photos_dir=${photos}"
delugefs create d1 d2
delugefs start
check "start" delugefs_mount start
conf 'delugefs_mount_photos_enable=NO'
delugefs_mount stop photos
check "one that is not enabled does not count" delugefs_mount status
check "but shows" said 'delugefs_mount_photos is not enabled'

# periodic(8)
for script in daily monthly; do
	sed -e "s|/etc/defaults/periodic.conf|${H}/periodic.conf|" "${here}/../periodic/${script}/500.delugefs" \
		>"${H}/${script}"
done
printf 'source_periodic_confs() { :; }\n' >"${H}/periodic.conf"
run() { dash "${H}/$1" >"${H}/said" 2>&1; }
check "daily: off by default" run daily
check "and silent" lines 0
printf 'daily_status_delugefs_enable=YES\nmonthly_scrub_delugefs_enable=YES\n' >>"${H}/periodic.conf"
check "daily: all is well" run daily
check "in few words" said 'No problems'
echo "disk 1 is read-only: full" >"${STUB_DIR}/problems"
run daily
check "daily: a problem is an error" [ $? -eq 3 ]
check "and shown" said 'disk 1 is read-only'
rm "${STUB_DIR}/problems"
delugefs stop d2
run daily
check "daily: a disk that is not running" [ $? -eq 3 ]
check "is shown" said 'delugefs_d2 is not running'
check "monthly scrub" run monthly
check "calls delugefs scrub" said '^<scrub>$'

conf 'delugefs_enable=NO'
run daily
check "daily: asks nothing of a service that is not enabled" [ $? -eq 2 ]
conf 'delugefs_enable=YES'
wrong()
{
	check "configtest: $1" fails eval "$2; delugefs_mount configtest films"
	check "configtest says so" said "$3"
}
cp "${RC_CONF}" "${RC_CONF}.good"
wrong "a relative path" 'conf delugefs_mount_films_dir=films' 'must be an absolute path'
wrong "a blank in the path" 'conf "delugefs_mount_films_dir=\"/a b\""' 'may only have letters'
wrong "no path" 'conf delugefs_mount_films_dir=' 'delugefs_mount_films_dir is not set'
wrong "a disk that is none" 'conf delugefs_mount_films_dir=/x delugefs_mount_films_disk=d7' 'has no delugefs_d7_root'
wrong "a user that is none" 'conf delugefs_mount_films_disk=d1 delugefs_mount_films_user=nosuchuser' 'there is no user'
wrong "a name that is none" 'conf delugefs_mounts=a-b' 'use names of letters'
cp "${RC_CONF}.good" "${RC_CONF}"
check "stop of all" delugefs_mount stop
check "and of the disks" delugefs stop
