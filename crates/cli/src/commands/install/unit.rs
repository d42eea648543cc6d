//! The units of systemd: a socket that is there before anybody calls, and the service behind it.

use std::path::Path;

use super::edit::Settings;

/// The service. Servers of mounts are not its children, and runs of it that end leave every mount alone.
pub fn service(program: &Path, settings: &Settings) -> String {
    format!(
        "[Unit]\n\
         Description=Strata, the snapshotter of containerd\n\
         Documentation=man:strata-snapshotter(1)\n\
         Requires=strata-snapshotter.socket\n\
         After=strata-snapshotter.socket local-fs.target\n\
         Before=containerd.service\n\
         \n\
         [Service]\n\
         ExecStart={} snapshotter --root {} --address {}\n\
         Restart=always\n\
         RestartSec=1\n\
         KillMode=process\n\
         OOMScoreAdjust=-999\n\
         LimitNOFILE=1048576\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        program.display(),
        settings.store.display(),
        settings.address.display()
    )
}

/// Its socket.
pub fn socket(address: &Path) -> String {
    format!(
        "[Unit]\n\
         Description=Where containerd calls Strata\n\
         Before=containerd.service\n\
         \n\
         [Socket]\n\
         ListenStream={}\n\
         SocketMode=0600\n\
         \n\
         [Install]\n\
         WantedBy=sockets.target\n",
        address.display()
    )
}
