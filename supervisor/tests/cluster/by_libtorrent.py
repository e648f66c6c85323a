"""The same transfer by libtorrent: `seed FILE ADDRESS PORT` until stdin closes, `fetch TORRENT FOLDER ADDRESS PORT`.

Plain BitTorrent over TCP between two peers that know each other; nothing else of libtorrent is switched on. `seed` prints
the torrent's path, `fetch` the seconds it took; both print their CPU seconds at the end.
"""
import os
import resource
import sys
import time

import libtorrent as lt


def session(address, port):
    return lt.session({
        "listen_interfaces": f"{address}:{port}",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
    })


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{used.ru_utime + used.ru_stime:.2f}", flush=True)


def seed(path, address, port):
    files = lt.file_storage()
    lt.add_files(files, path)
    made = lt.create_torrent(files, 1 << 20)
    lt.set_piece_hashes(made, os.path.dirname(path))
    torrent = path + ".torrent"
    with open(torrent, "wb") as out:
        out.write(lt.bencode(made.generate()))
    ours = session(address, port)
    handle = ours.add_torrent({"ti": lt.torrent_info(torrent), "save_path": os.path.dirname(path)})
    while not handle.status().is_seeding:
        time.sleep(0.01)
    before = resource.getrusage(resource.RUSAGE_SELF)
    print(torrent, flush=True)
    sys.stdin.read()
    after = resource.getrusage(resource.RUSAGE_SELF)
    # Without the hashing before.
    print(f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.2f}", flush=True)


def fetch(torrent, folder, address, port, peer, peer_port):
    ours = session(address, port)
    begin = time.monotonic()
    handle = ours.add_torrent({"ti": lt.torrent_info(torrent), "save_path": folder})
    handle.connect_peer((peer, int(peer_port)))
    while not handle.status().is_seeding:
        time.sleep(0.01)
        if time.monotonic() - begin > 120:
            sys.exit("it takes too long")
    print(f"{time.monotonic() - begin:.3f}", flush=True)
    cpu()


{"seed": seed, "fetch": fetch}[sys.argv[1]](*sys.argv[2:])
