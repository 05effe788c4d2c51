package spec

import (
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

const (
	signalRTMin = 34 // of glibc and musl; the kernel's first two are theirs
	signalRTMax = 64
)

// StopSignal is the number of the signal that asks a container to end: the
// request's, else the image's, else SIGTERM.
func StopSignal(c *cri.ContainerConfig, image ocispec.ImageConfig) int {
	if s := c.GetStopSignal(); s != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		if n, err := parseSignal(criSignalName(s)); err == nil {
			return n
		}
	}
	n, err := ImageStopSignal(image.StopSignal)
	if err != nil {
		return int(unix.SIGTERM)
	}
	return n
}

// ImageStopSignal reads an image's STOPSIGNAL: a name with or without SIG, or
// a number. "" is SIGTERM. kind.Invalid if it is neither.
func ImageStopSignal(s string) (int, error) {
	if s == "" {
		return int(unix.SIGTERM), nil
	}
	n, err := parseSignal(s)
	if err != nil {
		return 0, kind.Errorf(kind.Invalid, "stop signal of the image: %w", err)
	}
	return n, nil
}

// criSignalName turns SIGNAL_SIGRTMINPLUS1 into RTMIN+1.
func criSignalName(s cri.Signal) string {
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
}

func parseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > signalRTMax {
			return 0, kind.Errorf(kind.Invalid, "signal %d is not within 1 and %d", n, signalRTMax)
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := realTimeSignal(name); ok {
		return n, nil
	}
	if alias, ok := map[string]string{"CLD": "CHLD", "IOT": "ABRT", "POLL": "IO"}[name]; ok {
		name = alias
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	return 0, kind.Errorf(kind.Invalid, "there is no signal %q", clip(s))
}

// realTimeSignal reads RTMIN, RTMIN+n, RTMAX and RTMAX-n.
func realTimeSignal(name string) (int, bool) {
	for prefix, base := range map[string]int{"RTMIN": signalRTMin, "RTMAX": signalRTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return base, true
		}
		offset, err := strconv.Atoi(rest)
		n := base + offset
		if err != nil || (rest[0] != '+' && rest[0] != '-') || n < signalRTMin || n > signalRTMax {
			return 0, false
		}
		return n, true
	}
	return 0, false
}
