{{/* A site's settings: what it says itself, else the defaults, and where it listens. Takes {root, site}. */}}
{{- define "federated-maintenance.site" -}}
{{- $site := deepCopy .root.Values.siteDefaults }}
{{- range $key, $value := .site }}
{{- $_ := set $site $key $value }}
{{- end }}
{{- if not $site.existingSecret }}
{{- $_ := set $site "existingSecret" (printf "%s-accounts" $site.name) }}
{{- end }}
{{- $_ := set $site "scheme" (ternary "https" "http" (hasKey $site "tls")) }}
{{- $_ := set $site "port" (ternary 8443 8080 (hasKey $site "tls")) }}
{{- toYaml $site }}
{{- end }}

{{- define "federated-maintenance.image" -}}
{{- $image := index .root.Values.images .name -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
{{- end }}

{{/* What a selector names. Takes {root, component} and, for a site, {site}. */}}
{{- define "federated-maintenance.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .site }}
federated-maintenance/site: {{ . }}
{{- end }}
{{- end }}

{{- define "federated-maintenance.labels" -}}
{{ include "federated-maintenance.selectorLabels" . }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What every pod is, whichever values are given; 10001 is the account of the images. */}}
{{- define "federated-maintenance.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
# So that somebody reaps orphans and passes signals on, as `init: true` does in compose.
shareProcessNamespace: true
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  # By default each mount would give the group access to the site's private files.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "federated-maintenance.containerSecurity" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "federated-maintenance.tmpVolume" -}}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 256Mi}
{{- end }}

{{/* A claim's spec. Takes the storage. */}}
{{- define "federated-maintenance.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClassName }}
storageClassName: {{ quote . }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end }}

{{- define "federated-maintenance.siteYaml" -}}
{{- $listen := dict "host" "0.0.0.0" "port" .port }}
{{- if .tls }}
{{- $_ := set $listen "tls" (dict "certificate" "/run/secrets/site.crt" "key" "/run/secrets/site.key") }}
{{- end }}
{{- $operator := dict "email" .operator "password_file" "/run/secrets/operator" }}
{{- $researcher := dict "email" .researcher "password_file" "/run/secrets/researcher" }}
{{- $config := dict "site_id" .name "state" "/var/lib/datasite/state" "listen" $listen "policy" .policy }}
{{- $_ := set $config "operator" $operator }}
{{- $_ := set $config "researchers" (list $researcher) }}
{{- toYaml (merge $config .settings) }}
{{- end }}

{{- define "federated-maintenance.sitesYaml" -}}
sites:
{{- range .Values.sites }}
{{- $site := include "federated-maintenance.site" (dict "root" $ "site" .) | fromYaml }}
  - site_id: {{ $site.name }}
    url: {{ $site.scheme }}://{{ $site.name }}:{{ $site.port }}
    email: {{ $site.researcher | quote }}
    password_file: /run/secrets/{{ $site.name }}
    {{- if $site.tls }}
    ca_file: /run/secrets/{{ $site.name }}.ca.crt
    {{- end }}
{{- end }}
{{- range .Values.orchestrator.sites }}
  - site_id: {{ .name }}
    url: {{ .url | quote }}
    email: {{ .researcher | quote }}
    password_file: /run/secrets/{{ .name }}
    {{- if .caSecret }}
    ca_file: /run/secrets/{{ .name }}.ca.crt
    {{- end }}
    {{- with .tags }}
    tags: {{ toJson . }}
    {{- end }}
{{- end }}
{{- end }}
