{{/* Name of the chart. */}}
{{- define "dpo-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the release's objects. */}}
{{- define "dpo-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "dpo-operator.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "dpo-operator.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "dpo-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: dpo-operator
{{ include "dpo-operator.selector" . }}
{{- end }}

{{/* Labels that select the operator's pod. */}}
{{- define "dpo-operator.selector" -}}
app.kubernetes.io/name: {{ include "dpo-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dpo-operator.serviceAccount" -}}
{{- default (ternary (include "dpo-operator.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* Where an admission policy holds: in the watched namespaces. */}}
{{- define "dpo-operator.bound" -}}
{{- with .Values.watchNamespaces -}}
matchResources:
  namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values:
          {{- toYaml . | nindent 10 }}
{{- end }}
{{- end }}

{{/* Reference of an image. Arguments: root, image. A digest wins over a tag. */}}
{{- define "dpo-operator.image" -}}
{{- $registry := default (.root.Values.global).imageRegistry .image.registry -}}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .root.Chart.AppVersion .image.tag }}{{ end }}
{{- end }}

{{/* What the operator may do. It is exactly what it does: a test compares this with a golden file. */}}
{{- define "dpo-operator.rules" -}}
- apiGroups: [dpo-operator.dev]
  resources: [dpojobs]
  # delete: spec.ttlSecondsAfterFinished
  verbs: [get, list, watch, delete]
- apiGroups: [dpo-operator.dev]
  resources: [dpojobs/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  # patch: spec.suspend, with which gangs take turns
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  # patch: spec.checkpoint.volume.size that grows
  verbs: [get, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [events]
  # list: why pods are not made or do not start
  verbs: [list, create]
{{- if .Values.queues.volcano.enabled }}
- apiGroups: [scheduling.volcano.sh]
  resources: [podgroups]
  verbs: [get, create, patch]
{{- end }}
{{- if .Values.queues.schedulerPlugins.enabled }}
- apiGroups: [scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [get, create, patch]
{{- end }}
{{- end }}

{{/* Name of cluster-wide objects that several releases may each have. */}}
{{- define "dpo-operator.clusterName" -}}
{{- printf "%s-%s" (include "dpo-operator.fullname" .) .Release.Namespace }}
{{- end }}

{{/* CEL: whether a name is listed, or begins as a pattern does before its *. The schema lets no quote into a pattern. */}}
{{- define "dpo-operator.listed" -}}
{{- $exact := list }}
{{- $tests := list }}
{{- range .patterns }}
{{- if eq . "*" }}
{{- $tests = append $tests "true" }}
{{- else if hasSuffix "*" . }}
{{- $tests = append $tests (printf "%s.startsWith('%s')" $.name (trimSuffix "*" .)) }}
{{- else }}
{{- $exact = append $exact (squote .) }}
{{- end }}
{{- end }}
{{- $tests = append $tests (printf "%s in [%s]" .name (join ", " $exact)) -}}
({{ join " || " $tests }})
{{- end }}
