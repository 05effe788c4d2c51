package imagestore

import (
	"regexp"
	"slices"
	"strings"
)

// pins are patterns of the images that are to stay.
type pins struct{ patterns []*regexp.Regexp }

// newPins reads patterns in which "*" stands for any text, also with slashes,
// and everything else for itself.
func newPins(patterns []string) *pins {
	p := &pins{}
	for _, text := range patterns {
		parts := strings.Split(text, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		p.patterns = append(p.patterns, regexp.MustCompile("^(?s:"+strings.Join(parts, ".*")+")$"))
	}
	return p
}

func (p *pins) match(r *imageRecord) bool {
	for _, pattern := range p.patterns {
		if slices.ContainsFunc(r.Tags, pattern.MatchString) || slices.ContainsFunc(r.Digests, pattern.MatchString) {
			return true
		}
	}
	return false
}

// SetPinned marks the images of which a tag or digest reference, written in
// full ("registry.k8s.io/pause:3.10"), matches one of the patterns: the kubelet
// does not collect them. "*" in a pattern stands for any text. It replaces what
// was set before, and holds for images pulled later too.
func (s *Store) SetPinned(patterns []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins.Store(newPins(patterns))
	s.publishLocked()
}
