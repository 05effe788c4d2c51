package sandbox

import "testing"

func TestQuantity(t *testing.T) {
	for in, want := range map[string]uint64{"1": 1, "10M": 10e6, "500k": 500e3, "1Gi": 1 << 30, "2T": 2e12} {
		if got, err := parseQuantity(in); err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "-1", "1.5M", "M", "1e3", "99999999999P", "10 M", "0x10"} {
		if got, err := parseQuantity(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}
