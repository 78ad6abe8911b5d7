package agent

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/lab/internal/wire"
)

// network brings up the loopback and the configured interfaces, with the ioctls of netdevice(7).
func network(cfg *wire.NodeConfig) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, i := range append([]wire.Interface{{Name: "lo", CIDR: "127.0.0.1/8"}}, cfg.Interfaces...) {
		if err := configure(fd, i); err != nil {
			return fmt.Errorf("interface %s: %w", i.Name, err)
		}
	}
	return nil
}

func configure(fd int, i wire.Interface) error {
	p, err := netip.ParsePrefix(i.CIDR)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(i.Name)
	if err != nil {
		return err
	}
	addr := p.Addr().As4()
	if err := ifr.SetInet4Addr(addr[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, ifr); err != nil {
		return fmt.Errorf("set address: %w", err)
	}
	mask := uint32(0xffffffff) << (32 - p.Bits())
	if err := ifr.SetInet4Addr([]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, ifr); err != nil {
		return fmt.Errorf("set netmask: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("get flags: %w", err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}
