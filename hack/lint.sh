#!/usr/bin/env bash
# lint.sh looks at the sources without running them.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(gofmt -l .)
if [[ $unformatted ]]; then
  echo "gofmt would change:" $unformatted >&2
  exit 1
fi
go vet ./...
go vet -tags faults ./...
(cd hack/tools && go build -o ../../bin/staticcheck honnef.co/go/tools/cmd/staticcheck)
bin/staticcheck ./...
for module in test/*/go.mod; do
  [[ -e $module ]] || continue
  (cd "$(dirname "$module")" && go vet ./... && ../../bin/staticcheck ./...)
done
go test -count 1 ./hack
