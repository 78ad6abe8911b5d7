package doctor

import "slices"

// Kind is a kind of finding.
type Kind struct {
	ID       string   `json:"id"` // stable: scripts may rely on it
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
}

// The ids.
const (
	idUnchecked = "unchecked"

	idConfig      = "config"
	idConfigStale = "config-stale"
	idSocket      = "socket"

	idNotRunning     = "vmlockd-not-running"
	idNoAnswer       = "vmlockd-no-answer"
	idOtherDaemon    = "other-lock-daemon"
	idSocketMissing  = "socket-missing"
	idBinaryReplaced = "binary-replaced"
	idNoFile         = "nofile"
	idRunDirOpen     = "run-dir-open"
	idRunDirDisk     = "run-dir-disk"
	idRunDirMissing  = "run-dir-missing"
	idJournal        = "journal-damaged"
	idDraining       = "draining"
	idDaemonWarning  = "daemon-warning"

	idUnitKillMode  = "unit-killmode"
	idUnitRuntime   = "unit-runtime-dir"
	idUnitBoot      = "vmlockd-boot"
	idUnitPacemaker = "unit-pacemaker"
	idVirtlockdUnit = "virtlockd-unit"

	idModule      = "dlm-module"
	idModuleBoot  = "dlm-module-boot"
	idCorosync    = "corosync-not-running"
	idClusterBoot = "cluster-boot"
	idControld    = "dlm-controld-not-running"
	idControldMum = "dlm-controld-no-answer"
	idNoQuorum    = "no-quorum"
	idNodeAbsent  = "node-absent"
	idFencingWait = "fencing-pending"
	idStopped     = "lockspace-stopped"
	idStuck       = "lockspace-stuck"
	idReboot      = "reboot-needed"

	idCoroConf    = "corosync-conf"
	idCoroName    = "corosync-cluster-name"
	idCoroNodes   = "corosync-nodelist"
	idCoroQuorum  = "corosync-quorum"
	idCoroTwoNode = "corosync-two-node"
	idCoroDevice  = "corosync-device"
	idNodeName    = "node-name"
	idNodeID      = "node-id"

	idUnprotected = "unprotected"
	idTwoNode     = "two-node-unfenced"
	idFenceConfig = "fence-not-configured"
	idFenceAgent  = "fence-agent-missing"
	idFenceStale  = "fence-conf-stale"
	idWatchdog    = "watchdog"
	idDogStays    = "watchdog-stays"

	idPeerSilent  = "peer-silent"
	idPeerVersion = "peer-version"
	idPeerConfig  = "peer-config"
	idPeerAbsent  = "peer-absent"

	idLockManager    = "lock-manager"
	idLockManagerOff = "lock-manager-other"
	idLibvirtStale   = "libvirt-not-restarted"
	idAutoLeases     = "auto-disk-leases"
	idRequireLease   = "require-lease"
	idLockspaceDir   = "lockspace-dir-differs"

	idUnlocked     = "vm-unlocked"
	idLockMode     = "lock-mode"
	idDiskTwice    = "disk-twice"
	idBelow        = "backing-file-written"
	idShareFormat  = "shareable-format"
	idShareCache   = "shareable-cache"
	idSharePartial = "shareable-partial"
	idUnstable     = "unstable-path"
	idNoIdentity   = "disk-unknown"
	idByPath       = "disk-by-path"
)

// catalogue is in the order in which a host is best put right: what comes first
// may be the cause of what comes later.
var catalogue = []Kind{
	{idModule, Fault, "the kernel's module dlm is not loaded"},
	{idCoroConf, Fault, "corosync.conf is missing or cannot be understood"},
	{idCoroName, Fault, "corosync.conf has no cluster_name"},
	{idCoroNodes, Fault, "corosync.conf has no usable list of nodes"},
	{idCoroQuorum, Fault, "corosync.conf has no quorum provider"},
	{idCoroTwoNode, Warning, "two_node does not fit, or wait_for_all is off"},
	{idCoroDevice, Warning, "the quorum device does not run, or leaves quorum to more than one part of the cluster"},
	{idCorosync, Fault, "corosync does not run"},
	{idControld, Fault, "dlm_controld does not run"},
	{idControldMum, Fault, "dlm_controld does not answer"},
	{idReboot, Fault, "the lockspace is dead until this host is rebooted"},
	{idNoQuorum, Fault, "the cluster has no quorum, and locks are refused"},
	{idFencingWait, Fault, "a lost node waits to be fenced, and locks are refused"},
	{idStopped, Fault, "the lockspace does not run, and locks are refused"},
	{idStuck, Fault, "the lockspace waits for messages that dlm_controld has refused, until this host is rebooted"},
	{idNodeID, Fault, "this node's number is not in corosync.conf"},
	{idNodeName, Warning, "this node's name in corosync.conf is not the host's"},
	{idNodeAbsent, Warning, "a node of corosync.conf is not in the cluster"},
	{idModuleBoot, Warning, "nothing loads the module dlm at boot"},
	{idClusterBoot, Warning, "corosync or dlm_controld is not started at boot"},
	{idTwoNode, Fault, "two_node without fencing: both halves of a split cluster grant the same locks"},
	{idFenceConfig, Fault, "fencing is on and no agent is configured"},
	{idFenceAgent, Fault, "a fence agent is not installed"},
	{idFenceStale, Warning, "dlm_controld does not fence as dlm.conf says"},
	{idWatchdog, Warning, "the watchdog of vmlockd does not exist, is another program's, or cannot be stopped once it was opened"},
	{idDogStays, Warning, "a watchdog is armed and cannot be stopped any more: this host is reset if vmlockd is stopped"},
	{idUnprotected, Warning, "fencing is off and nothing guards a host that is cut off, or not all that runs there"},

	{idConfig, Fault, "vmlockd.toml has a mistake"},
	{idNotRunning, Fault, "vmlockd does not run"},
	{idNoAnswer, Fault, "vmlockd does not answer"},
	{idOtherDaemon, Fault, "another program listens on the socket of libvirt"},
	{idSocketMissing, Fault, "the socket of libvirt is gone"},
	{idSocket, Fault, "vmlockd is configured for a socket that libvirt does not use"},
	{idConfigStale, Warning, "vmlockd runs with an older configuration"},
	{idBinaryReplaced, Warning, "vmlockd's program was replaced, and the old one still runs"},
	{idNoFile, Warning, "vmlockd is near its limit of open files"},
	{idRunDirOpen, Fault, "others than root can get at run_dir"},
	{idRunDirMissing, Fault, "run_dir was removed"},
	{idRunDirDisk, Warning, "run_dir is not on a tmpfs"},
	{idJournal, Warning, "the journal was damaged"},
	{idDraining, Warning, "this host is being drained"},
	{idDaemonWarning, Warning, "vmlockd warns of something else"},
	{idUnitKillMode, Fault, "stopping vmlockd's unit ends what keeps the locks"},
	{idUnitRuntime, Fault, "stopping vmlockd's unit removes run_dir"},
	{idUnitBoot, Warning, "vmlockd is not started at boot"},
	{idUnitPacemaker, Warning, "systemd starts vmlockd before Pacemaker has started dlm_controld"},
	{idVirtlockdUnit, Fault, "systemd may give libvirt's socket to virtlockd"},
	{idPeerConfig, Fault, "another host's configuration of vmlockd differs"},
	{idPeerSilent, Warning, "another host's vmlockd does not answer"},
	{idPeerAbsent, Warning, "another host of the cluster does not run vmlockd"},
	{idPeerVersion, Warning, "another host runs another version of vmlockd"},

	{idLockManager, Fault, "libvirt has no lock manager"},
	{idLockManagerOff, Fault, "libvirt uses another lock manager"},
	{idLibvirtStale, Fault, "libvirt runs without the configured lock manager"},
	{idAutoLeases, Fault, "libvirt asks for no lock for a disk"},
	{idRequireLease, Fault, "virtual machines start without any lock"},
	{idLockspaceDir, Fault, "hosts name the lock of a disk in different ways"},
	{idUnlocked, Fault, "a virtual machine runs and its disk is not locked"},
	{idDiskTwice, Fault, "two running virtual machines write one disk"},
	{idBelow, Fault, "a virtual machine writes an image on which another one's disk lies"},
	{idLockMode, Fault, "a disk is locked in another mode than its definition says"},
	{idShareFormat, Fault, "a shareable disk has a format that two cannot write"},
	{idShareCache, Warning, "a shareable disk is cached by each host"},
	{idSharePartial, Warning, "a disk is shareable in one definition and not in another"},
	{idNoIdentity, Fault, "it cannot be told which disk it is, and no lock is granted"},
	{idByPath, Warning, "a disk is named by its path, or by what else may differ on other hosts"},
	{idUnstable, Warning, "a disk has a name that may mean another one on another host"},
	{idUnchecked, Unchecked, "something could not be looked at"},
}

// Catalogue lists every kind of finding.
func Catalogue() []Kind { return slices.Clone(catalogue) }

func order(id string) int {
	return slices.IndexFunc(catalogue, func(k Kind) bool { return k.ID == id })
}

func kindOf(id string) Kind { return catalogue[order(id)] }
