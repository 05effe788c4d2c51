package sandbox

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// parseQuantity reads a whole Kubernetes quantity such as "500k", "10M" or
// "1Gi" (apimachinery's resource.Quantity without fractions and exponents).
func parseQuantity(s string) (uint64, error) {
	units := []struct {
		suffix string
		factor uint64
	}{
		{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
		{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15},
	}
	digits, factor := s, uint64(1)
	for _, u := range units {
		if strings.HasSuffix(s, u.suffix) {
			digits, factor = strings.TrimSuffix(s, u.suffix), u.factor
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || n > math.MaxUint64/factor {
		return 0, fmt.Errorf("%.64q is not a positive quantity like 10M", s)
	}
	return n * factor, nil
}
