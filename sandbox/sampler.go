package sandbox

import (
	"sync"
	"time"

	"noded.dev/noded/internal/cgroup"
)

// sampler reads a cgroup's statistics through descriptors that stay open, and
// makes CPU rates from the last two reads. Nothing polls.
type sampler struct {
	mu    sync.Mutex
	group *cgroup.Group
	last  cgroup.Stats // zero before the first read
	rate  rate
}

// rate is CPU time per time, in nanoseconds per second ("nano cores").
type rate struct {
	nanoCores uint64
	known     bool
}

// The window of a rate: two reads that are closer are noise, where several
// readers ask at once, and two that lie further apart tell nothing of now. The
// kubelet reads every ten seconds.
const (
	rateWindowMin = 100 * time.Millisecond
	rateWindowMax = 2 * time.Minute
)

// read returns the statistics of dir and the CPU rate, which is unknown before
// the second read.
func (s *sampler) read(h *cgroup.Host, dir string) (cgroup.Stats, rate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats, err := s.open(h, dir).Stats()
	if err != nil {
		return stats, rate{}, err
	}
	return stats, s.sample(stats), nil
}

// details are read without a rate, of which metrics have none.
func (s *sampler) details(h *cgroup.Host, dir string) (cgroup.Details, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open(h, dir).Details()
}

func (s *sampler) open(h *cgroup.Host, dir string) *cgroup.Group {
	if s.group == nil {
		s.group = h.Open(dir)
	}
	return s.group
}

func (s *sampler) sample(now cgroup.Stats) rate {
	elapsed := now.Time.Sub(s.last.Time)
	switch {
	case !now.Has.CPU || s.last.Time.IsZero() || elapsed > rateWindowMax || now.CPU.Usage < s.last.CPU.Usage:
		s.last, s.rate = now, rate{}
	case elapsed >= rateWindowMin:
		s.rate = rate{uint64(float64(now.CPU.Usage-s.last.CPU.Usage) / elapsed.Seconds()), true}
		s.last = now
	}
	return s.rate
}

func (s *sampler) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group != nil {
		s.group.Close()
		s.group = nil
	}
}
