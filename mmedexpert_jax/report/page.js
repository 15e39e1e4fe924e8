// A new element of `tag` at the end of `parent`, with its text and class.
const make = (tag, parent, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  parent.append(node);
  return node;
};
