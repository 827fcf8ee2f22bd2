module dpo-operator.dev/rig/pause

go 1.25.0
