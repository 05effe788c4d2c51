package builtin

import (
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
)

const (
	// burstTime is how much of the rate may be sent at once, and minBurst the
	// least that holds a segmented packet, in bytes.
	burstPerSecond = 10
	minBurst       = 64 << 10
	// queueTime bounds how long a packet waits for its turn, as 1/40 s.
	queuePerSecond = 40
)

// limitRate bounds what leaves by an interface, in bits per second; 0 does not.
// It is a token bucket (tc-tbf(8)).
func limitRate(h *netlink.Handle, link netlink.Link, bps uint64) error {
	if bps == 0 {
		return nil
	}
	rate := max(bps/8, 1)
	burst := uint32(min(max(rate/burstPerSecond, minBurst), math.MaxInt32))
	limit := uint32(min(rate/queuePerSecond, math.MaxInt32)) + burst
	bucket := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Limit:      limit,
		Buffer:     netlink.Xmittime(rate, burst),
	}
	if err := h.QdiscReplace(bucket); err != nil {
		return fmt.Errorf("limit %s to %d bit/s: %w", link.Attrs().Name, bps, err)
	}
	return nil
}
