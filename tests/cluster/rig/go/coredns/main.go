// CoreDNS with only the plugins that the rig's cluster DNS needs: the full set takes several times as long to compile.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func init() {
	// The order in which plugins handle a query.
	dnsserver.Directives = []string{"bind", "health", "ready", "errors", "template", "kubernetes"}
}

func main() {
	coremain.Run()
}
