# What can be said of the files without running them.
# shellcheck shell=sh disable=SC2154,SC2013
top=$(cd "${here}/.." && pwd)
H="${T}/static"
mkdir -p "${H}/bin"
scripts="${top}/delugefs ${top}/delugefs_mount ${top}/periodic/daily/500.delugefs ${top}/periodic/monthly/500.delugefs
	${top}/freebsd/cargo ${top}/freebsd/narrow-librqbit"
quiet() { "$@" >"${H}/said" 2>&1; }
# shellcheck disable=SC2086
{
	check "shellcheck: the scripts" quiet shellcheck -s sh -e SC2016 ${scripts}
	check "shellcheck: the tests" quiet shellcheck -x -e SC1091,SC2016 "${here}/run" "${here}"/*.sh "${here}"/fake/* \
		"${here}"/stub/*
	for script in ${scripts}; do
		check "dash takes ${script##*/}" quiet dash -n "${script}"
		check "${script##*/} is executable" [ -x "${script}" ]
		# What dash lets pass and POSIX does not have.
		check "${script##*/}: nothing but POSIX" fails grep -n -E \
			'(^|[;&|[:space:]])(local|source|\[\[|function)[[:space:]]' "${script}"
	done
}
for page in "${top}"/man/*.[158]; do
	lint() { [ -z "$(mandoc -T lint -W warning "${page}" | tee "${H}/said")" ]; }
	check "mandoc: ${page##*/}" lint
	check "mandoc shows ${page##*/}" quiet mandoc -T ascii "${page}"
	# Each page that is referred to and is ours exists.
	for name in $(sed -n 's/.*\.Xr \(delugefs[a-z.-]*\) \([158]\).*/\1.\2/p' "${page}" | sort -u); do
		check "${page##*/} refers to ${name}" [ -f "${top}/man/${name}" ]
	done
done

# rcorder(8) reads these, and service(8) reads name and rcvar.
header() { sed -n "s/^# $2: //p" "${top}/$1"; }
check "delugefs: PROVIDE" [ "$(header delugefs PROVIDE)" = delugefs ]
check "delugefs: REQUIRE" [ "$(header delugefs REQUIRE)" = "FILESYSTEMS NETWORKING syslogd" ]
check "delugefs: stops at shutdown" [ "$(header delugefs KEYWORD)" = shutdown ]
check "delugefs_mount: PROVIDE" [ "$(header delugefs_mount PROVIDE)" = delugefs_mount ]
check "delugefs_mount: after the disks" [ "$(header delugefs_mount REQUIRE)" = delugefs ]
check "delugefs_mount: before those who share it" [ "$(header delugefs_mount BEFORE)" = "mountd DAEMON" ]
check "delugefs_mount: stops at shutdown" [ "$(header delugefs_mount KEYWORD)" = shutdown ]
for script in delugefs delugefs_mount; do
	check "${script}: its name can be found" grep -q -x "name=\"${script}\"" "${top}/${script}"
	check "${script}: its variable can be found" grep -q -x "rcvar=\"${script}_enable\"" "${top}/${script}"
	# Each setting with a default is in the script's head and in the guide.
	for setting in $(sed -n "s/^: \"\\\${\\(delugefs[a-z_]*\\):=.*/\\1/p" "${top}/${script}"); do
		check "README.md explains ${setting}" grep -q "\`${setting}\`" "${top}/README.md"
		check "${script} explains ${setting}" grep -q -h "^# ${setting}=" "${top}/delugefs" "${top}/delugefs_mount"
	done
done
check "delugefs_mount is never in a service jail" grep -q -x 'delugefs_mount_svcj="NO"' "${top}/delugefs_mount"

# Fields of newsyslog.conf(5): name, owner, mode, count, size, when, flags.
fields() { [ "$(grep -v '^#' "${top}/newsyslog/delugefs.conf" | awk '{ print NF }')" = 7 ]; }
check "newsyslog: seven fields" fields
check "newsyslog and syslog name one file" grep -q "/var/log/delugefs.log\$" "${top}/syslog.d/delugefs.conf"

# Every setting of the sample is one that the programs know, and every one they know is in it.
sample()
{
	sed -n -e 's/^#\([a-z_]*\) = .*/\1/p' -e 's/^#\(\[\[[a-z]*\]\]\)/\1/p' "${top}/delugefs.toml.sample" | tr '\n' ' '
}
settings="cluster peers [[disk]] root reserve_bytes retention_s listen btport lazy site upload_bytes_per_s download_bytes_per_s [[mount]] dir user "
check "the sample has all settings" [ "$(sample)" = "${settings}" ]
for setting in cluster peers root reserve_bytes retention_s listen btport lazy site upload_bytes_per_s download_bytes_per_s dir user; do
	check "delugefs.toml(5) explains ${setting}" grep -q "^\\.It Ic ${setting} No =" "${top}/man/delugefs.toml.5"
done
if [ -f "${top}/../proto/src/config.rs" ]; then
	known() { sed -n 's/^    pub \([a-z_]*\): .*/\1/p' "${top}/../proto/src/config.rs" | tr '\n' ' '; }
	check "the programs know these and no others" [ "$(known)" = \
		"cluster peers disks mounts root reserve_bytes retention_s listen btport lazy site upload_bytes_per_s download_bytes_per_s dir user " ]
fi

# The port installs what is here.
plist="${top}/port/pkg-plist"
for file in delugefs delugefs_mount; do
	check "plist: ${file}" grep -q -x "etc/rc.d/${file}" "${plist}"
done
for page in "${top}"/man/*.[158]; do
	page=${page##*/}
	check "plist: ${page}" grep -q -x "share/man/man${page##*.}/${page}.gz" "${plist}"
done
for file in periodic/daily/500.delugefs periodic/monthly/500.delugefs; do
	check "plist: ${file}" grep -q -x "etc/${file}" "${plist}"
done
sorted() { sed 's/^@[a-z]* //' "${plist}" | grep -v '^%%' | LC_ALL=C sort -c; }
check "plist: sorted" quiet sorted
check "port: each line of a recipe begins with a tab" fails grep -n '^  *[@$]' "${top}/port/Makefile"
if [ -f "${top}/../Cargo.toml" ]; then
	check "port: the version is that of the source" grep -q \
		"^version = \"$(sed -n 's/^DISTVERSION=[[:space:]]*//p' "${top}/port/Makefile")\"" "${top}/../Cargo.toml"
fi

check "systemd: another disk of the host can take a mount over" grep -q '^ExecStart=.* --fallback /run/delugefs ' \
	"${top}/systemd/delugefs-mount@.service"
if command -v systemd-analyze >/dev/null; then
	mkdir "${H}/units"
	for unit in "${top}"/systemd/*; do
		name=$(basename "${unit}" | sed 's/@/@x/')
		sed -e "s|/usr/local/bin|${H}/bin|" -e '/^Documentation=/d' "${unit}" >"${H}/units/${name}"
	done
	for program in delugefs delugefs-diskworker delugefs-fusefront delugefs-supervisor; do
		printf '#!/bin/sh\n' >"${H}/bin/${program}"
		chmod +x "${H}/bin/${program}"
	done
	for unit in "${H}"/units/*; do
		# It also has to say things of the machine's own units.
		verify() { ! systemd-analyze verify --man=no --recursive-errors=no "${unit}" 2>&1 | grep -F delugefs >"${H}/said"; }
		check "systemd: ${unit##*/}" verify
	done
fi
